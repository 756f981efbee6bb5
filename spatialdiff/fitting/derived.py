r"""What follows from the parameters: ranges, micro-ergodic parameters, the share of the nugget, matrices.

- The effective range is where the correlation is 0.05, one per length scale (or principal axis).
- The micro-ergodic parameter, for Matérn :math:`\sigma^2/\ell^{2\nu}`, is what ever denser sites in a bounded
  region determine: laws with equal ones cannot be told apart there, however different :math:`\sigma^2` and
  :math:`\ell` are (Zhang 2004, theorem 2, ν known; other families: see their kernels).
- Nugget/sill is the share of the variance without spatial correlation.
- A coregionalisation has :math:`B_q = L_q L_q^T` and the correlations of the channels at a site.

Standard errors by the delta method: for :math:`f(\theta)` with :math:`\theta \sim N(\hat\theta, V)`,
:math:`\mathrm{se}^2 = \nabla f^T V \nabla f`, the gradient by central differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.fitting.naming import Parameter
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Anisotropic, Coregionalization, Gneiting, Nonstationary, StationaryKernel

_STEP = 1e-4

Quantity = Callable[[nn.Module], float]


def derived_quantities(
    model: KernelParameters, theta: Tensor, covariance: Tensor, dimension: int | None = None
) -> dict[str, tuple[float, float]]:
    """Quantities of the module at ``theta`` with their standard errors, NaN where none can be given.

    Args:
        model: the kernel.
        theta: estimates ``(p,)``.
        covariance: of the estimates, ``(p, p)``.
        dimension: number of coordinates of the sites, for durations of space–time kernels.
    """
    wanted = dict(_quantities(model, dimension))
    if not wanted:
        return {}
    at = _values(model, theta, wanted)
    slopes = {name: torch.zeros(len(theta), dtype=torch.float64) for name in wanted}
    for i, p in enumerate(model.free):
        low, high = p.theta_bounds
        below, above = theta.clone(), theta.clone()
        below[i], above[i] = max(float(theta[i]) - _STEP, low), min(float(theta[i]) + _STEP, high)
        width = float(above[i] - below[i])
        if width <= 0.0:
            continue
        one, other = (_values(model, point, wanted) for point in (below, above))
        for name in wanted:
            slopes[name][i] = (other[name] - one[name]) / width
    return {name: (value, _error(value, slopes[name], covariance)) for name, value in at.items()}


def _values(model: KernelParameters, theta: Tensor, wanted: dict[str, Quantity]) -> dict[str, float]:
    with torch.no_grad():
        kernel = model.fitted(theta, torch.float64)
        return {name: quantity(kernel) for name, quantity in wanted.items()}


def _error(value: float, slope: Tensor, covariance: Tensor) -> float:
    # differences of numbers of this size leave no more than this
    used = slope.abs() > 1e-9 * abs(value)
    if not bool(used.any()):
        return 0.0
    variance = float(slope[used] @ covariance[used][:, used] @ slope[used])
    return math.sqrt(variance) if variance >= 0.0 else math.nan


def _quantities(model: KernelParameters, dimension: int | None) -> Iterator[tuple[str, Quantity]]:
    kernel = model.kernel
    if isinstance(kernel, Coregionalization):
        yield from _of_channels(kernel)
    inside = [path for path, part in kernel.named_modules() if isinstance(part, Anisotropic | Nonstationary)]
    for path, part in kernel.named_modules():
        own = [p for p in model.all if p.owner_path == path]
        if isinstance(part, Anisotropic):
            yield from _of_principal_axes(part, path, own, model)
        elif isinstance(part, Gneiting) and dimension is not None:
            yield f"{_prefix(own[0])}effective_duration", _duration(path, dimension - 1)
        elif isinstance(part, StationaryKernel):
            transformed = any(f"{path}.".startswith(f"{outer}.kernel.".lstrip(".")) for outer in inside)
            if not transformed:
                yield from _of_family(part, path, own, isinstance(kernel, Coregionalization))
    if not isinstance(kernel, Coregionalization) and _has_nugget(kernel):
        yield "nugget/sill", lambda k: float(k.nugget / k.variance)  # type: ignore[arg-type,operator]


def _of_family(
    part: StationaryKernel, path: str, own: list[Parameter], scaled: bool
) -> Iterator[tuple[str, Quantity]]:
    """``scaled``: the variance is that of a matrix, and the family's own 1 or whatever it is held at."""
    lengths = [p for p in own if p.is_lengthscale]
    if not lengths:
        return
    variance = any(p.is_variance for p in own) and not scaled
    nu = getattr(part, "nu", None)
    prefix = _prefix(lengths[0])
    for p in lengths:
        yield f"{prefix}effective_range{_suffix(p)}", _range(path, p.index)
    if len(lengths) > 1:
        # no parameter of a kernel with a length scale per axis is known, but along each axis there is one
        if isinstance(nu, float) and variance:
            for p in lengths:
                yield f"{prefix}{_ratio(nu, _suffix(p))}", _along(path, p.index, nu)
        return
    if not variance:
        return
    try:
        _ = part.microergodic
    except ValueError:
        return
    name = _ratio(nu) if isinstance(nu, float) else "microergodic"
    yield f"{prefix}{name}", lambda k: float(k.get_submodule(path).microergodic)  # type: ignore[arg-type]


def _ratio(nu: float, suffix: str = "") -> str:
    power = 2.0 * nu
    return f"variance/lengthscale{suffix}" + ("" if power == 1.0 else f"^{power:g}")


def _range(path: str, index: int) -> Quantity:
    def value(kernel: nn.Module) -> float:
        found = kernel.get_submodule(path).effective_range
        return float(torch.as_tensor(found).reshape(-1)[index])

    return value


def _along(path: str, index: int, nu: float) -> Quantity:
    def value(kernel: nn.Module) -> float:
        part = kernel.get_submodule(path)
        assert isinstance(part, StationaryKernel)
        return float(part.variance / part.lengthscale.reshape(-1)[index] ** (2.0 * nu))

    return value


def _of_principal_axes(
    part: Anisotropic, path: str, own: list[Parameter], model: KernelParameters
) -> Iterator[tuple[str, Quantity]]:
    try:
        _ = part.effective_range
    except ValueError:
        return
    inner = [p for p in model.all if p.owner_path == (f"{path}.kernel" if path else "kernel")]
    lengths = [p for p in inner if p.is_lengthscale]
    prefix = _prefix(lengths[0] if lengths else own[0])
    for axis in range(part.dimension):
        yield f"{prefix}effective_range[{axis}]", _range(path, axis)


def _duration(path: str, space_axes: int) -> Quantity:
    def value(kernel: nn.Module) -> float:
        part = kernel.get_submodule(path)
        assert isinstance(part, Gneiting)
        return float(part.effective_duration(space_axes))

    return value


def _of_channels(kernel: Coregionalization) -> Iterator[tuple[str, Quantity]]:
    channels, terms = kernel.channels, len(kernel.roots)

    def entry(q: int, i: int, j: int) -> Quantity:
        def value(at: nn.Module) -> float:
            assert isinstance(at, Coregionalization)
            return float(at.terms[q][0][i, j])

        return value

    def correlation(i: int, j: int) -> Quantity:
        def value(at: nn.Module) -> float:
            assert isinstance(at, Coregionalization)
            total = at.variance
            return float(total[i, j] / (total[i, i] * total[j, j]).sqrt())

        return value

    for q in range(terms):
        label = f"B{q + 1}" if terms > 1 else "B"
        for i in range(channels):
            for j in range(i, channels):
                yield f"{label}[{i},{j}]", entry(q, i, j)
    for i in range(channels):
        for j in range(i + 1, channels):
            yield f"correlation[{i},{j}]", correlation(i, j)


def _has_nugget(kernel: Kernel) -> bool:
    nugget = getattr(kernel, "nugget", None)
    return (
        isinstance(nugget, Tensor)
        and isinstance(getattr(kernel, "variance", None), Tensor)
        and bool((nugget.detach() > 0.0).all())
    )


def _prefix(p: Parameter) -> str:
    prefix, _, _ = p.name.rpartition(".")
    return f"{prefix}." if prefix else ""


def _suffix(p: Parameter) -> str:
    return p.name[p.name.index("[") :] if "[" in p.name else ""
