r"""What part a parameter plays: which coordinates its kernel sees, and whether it does what another does.

Of :math:`\sigma^2 B`, and of a family's length scale and the length scales of a kernel around it, only the
product is identified; the descriptions of these kernels ask for the inner one to be held.
"""

from __future__ import annotations

from gpytorch.kernels import AdditiveKernel
from torch import nn

from spatialdiff.kernels import Anisotropic, Coregionalization, Gneiting, Nonstationary, Separable

VARIANCES = ("variance", "outputscale")


def prefixes_of(path: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a``, and the empty path."""
    parts = path.split(".") if path else []
    return [".".join(parts[:k]) for k in range(len(parts), -1, -1)]


def axes_of(kernel: nn.Module) -> dict[str, tuple[tuple[int, ...] | None, int | None]]:
    """The coordinates that kernels inside a separable one see, and the one that the space of Gneiting's does
    not, by path."""
    found: dict[str, tuple[tuple[int, ...] | None, int | None]] = {}
    for path, module in kernel.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Separable):
            for number, (axes, _) in enumerate(module.factors):
                found[f"{prefix}kernels.{number}"] = (axes, None)
        elif isinstance(module, Gneiting):
            found[f"{prefix}space"] = (None, module.time_axis)
    return found


def redundant_in(kernel: nn.Module) -> list[str]:
    """Paths of parameters of which only the product with another that is fitted is identified."""
    found: list[str] = []
    for path, module in kernel.named_modules():
        prefix = f"{path}." if path else ""
        inner = {"lengthscale": f"{prefix}kernel.raw_lengthscale", "variance": f"{prefix}kernel.raw_variance"}
        if isinstance(module, Nonstationary):
            fitted = {
                name: any(p.requires_grad for p in part.parameters())
                for name in ("lengthscale", "standard_deviation")
                if isinstance(part := getattr(module, f"{name}_field"), nn.Module)
            }
            if fitted.get("lengthscale"):
                found.append(inner["lengthscale"])
            if fitted.get("standard_deviation"):
                found.append(inner["variance"])
        elif isinstance(module, Anisotropic) and not module._relative and module.raw_scales.requires_grad:
            found.append(inner["lengthscale"])
        elif isinstance(module, Coregionalization):
            for number, (root, part) in enumerate(zip(module.roots, module.kernels, strict=True)):
                if root.requires_grad:
                    found += _scale_paths(part, f"{prefix}kernels.{number}.")
    return found


def _scale_paths(kernel: nn.Module, prefix: str) -> list[str]:
    """Paths of the variances that set the scale of ``kernel``; in a sum, of its first part."""
    if isinstance(kernel, AdditiveKernel):
        return _scale_paths(kernel.kernels[0], f"{prefix}kernels.0.")
    return [
        f"{prefix}{path}"
        for path, _ in kernel.named_parameters()
        if path.rpartition(".")[2].removeprefix("raw_") in VARIANCES
    ]
