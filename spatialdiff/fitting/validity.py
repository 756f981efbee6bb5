"""Bounds within which a kernel is positive definite on the sites of a fit.

Some families are covariances in ``d`` dimensions only where a shape parameter is large enough, such as
``λ ≥ (d+1)/2`` for Askey's; in a separable kernel ``d`` is the number of axes of the factor.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpytorch.kernels import Kernel

from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Separable, SpatialKernel


def keep_valid(model: KernelParameters, d: int) -> None:
    """Raise lower bounds of free parameters to where the kernel is positive definite in ``d`` dimensions.

    Raises:
        ValueError: upper bounds below that.
    """
    for path, least in _least(model.kernel, d, ""):
        for p in model.free:
            if p.path == path and p.lower < least:
                if least >= p.upper:
                    raise ValueError(
                        f"{p.owner} is positive definite on these sites for {p.name} ≥ {least:g} only, but "
                        f"its upper bound is {p.upper:g}"
                    )
                p.lower = p.valid_from = least


def _least(kernel: Kernel, d: int, prefix: str) -> Iterator[tuple[str, float]]:
    """Paths of raw parameters and the least valid values of the parameters."""
    if isinstance(kernel, SpatialKernel):
        for name, value in kernel.least_valid(d).items():
            yield f"{prefix}raw_{name}", value
    dimensions = [len(axes) for axes, _ in kernel.factors] if isinstance(kernel, Separable) else []
    for number, (path, part) in enumerate(_inside(kernel)):
        yield from _least(part, dimensions[number] if dimensions else d, f"{prefix}{path}.")


def _inside(kernel: Kernel) -> Iterator[tuple[str, Kernel]]:
    """The kernels directly inside ``kernel``, with their paths."""
    for name, module in kernel.named_children():
        if isinstance(module, Kernel):
            yield name, module
        else:
            for inner, part in module.named_children():
                if isinstance(part, Kernel):
                    yield f"{name}.{inner}", part
