r"""A kernel's parameters as one unconstrained-looking vector with readable names.

Any gpytorch kernel stores raw parameters and maps them by constraints to natural ones. Likelihoods are
maximised in :math:`\theta = \log(\text{natural})` where the constraint keeps the parameter positive, and in
the natural value otherwise, so that the scale of the units drops out and standard errors of positive
parameters are relative ones (delta method: :math:`\mathrm{se}(e^\theta) = e^\theta\,\mathrm{se}(\theta)`).

The kernel is evaluated functionally (``torch.func.functional_call``): the caller's kernel is never modified.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.covariance.grids.lattice import torus_eigenvalues
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.spectra import full_spectrum

VARIANCES = ("variance", "outputscale")


@dataclass
class Parameter:
    """One scalar of a kernel: where it is stored, what it is called, how it is transformed, and its
    bounds."""

    name: str
    path: str
    index: int
    attribute: str
    owner: str
    log: bool
    start: float
    lower: float
    upper: float
    free: bool = True
    bounded_by_user: bool = field(default=False, repr=False)
    valid_from: float = field(default=-math.inf, repr=False)

    @property
    def is_lengthscale(self) -> bool:
        """Whether this is a length scale, in the grid's units."""
        return "lengthscale" in self.attribute

    @property
    def is_variance(self) -> bool:
        """Whether this scales a covariance (a nugget included)."""
        return self.attribute in VARIANCES

    @property
    def is_nugget(self) -> bool:
        """Whether this is the variance of a :class:`~spatialdiff.kernels.Nugget`."""
        return self.is_variance and self.owner == "Nugget"

    @property
    def theta_bounds(self) -> tuple[float, float]:
        """The bounds on the scale that is optimised."""
        lower = -math.inf if self.log and self.lower <= 0.0 else self.to_theta(self.lower)
        return lower, self.to_theta(self.upper) if math.isfinite(self.upper) else math.inf

    def to_theta(self, natural: float) -> float:
        """Natural value to the scale that is optimised."""
        return math.log(natural) if self.log else natural

    def to_natural(self, theta: float) -> float:
        """The scale that is optimised to the natural value."""
        return math.exp(theta) if self.log else theta


class _Evaluator(nn.Module):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, where: Tensor | Sequence[Tensor] | None, grid: Grid | None) -> Tensor | None:
        # Lazy evaluation would outlive the functional call and see the stored parameters. In trace mode
        # gpytorch's kernels use plain operations in place of hand-written backward passes, whose own
        # derivatives are wrong.
        with gpytorch.settings.lazily_evaluate_kernels(False), gpytorch.settings.trace_mode(True):
            if grid is not None and where is None:
                closed = torus_eigenvalues(self.kernel, grid)
                return None if closed is None else closed[0]
            if grid is not None:
                assert where is not None
                return stationary_at(self.kernel, grid, list(where))[0]
            value: Tensor = self.kernel(where, where).to_dense()
        return value


class KernelParameters:
    """A float64 copy of ``kernel`` seen as a function of a vector of its free parameters.

    Args:
        kernel: any gpytorch kernel without batch shape.
        fixed: names to hold at their present value, or a mapping of names to values to hold them at.
            ``"lengthscale"`` stands for every ``"lengthscale[i]"``. Parameters that do not require a gradient
            are held as well.
        bounds: natural-scale ``(lower, upper)`` by name; they narrow the kernel's own constraints.

    Raises:
        TypeError: for something that is not a gpytorch kernel.
        ValueError: for a name that the kernel does not have, a value outside its bounds, or a kernel with
            nothing left to fit.
    """

    def __init__(
        self,
        kernel: Kernel,
        fixed: Iterable[str] | Mapping[str, float] = (),
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a gpytorch.kernels.Kernel, got {type(kernel).__name__}")
        if len(kernel.batch_shape):
            raise ValueError(
                f"kernels with a batch shape cannot be fitted, got batch shape {tuple(kernel.batch_shape)}"
            )
        self.kernel: Kernel = copy.deepcopy(kernel).to(device="cpu", dtype=torch.float64)
        self._evaluator = _Evaluator(self.kernel)
        self._mirrored = reflection_symmetric(self.kernel)
        self._constraints = {
            name: constraint for name, _, constraint in self.kernel.named_parameters_and_constraints()
        }
        self._raw = {name: value.detach() for name, value in self.kernel.named_parameters()}
        self.all = _describe(self.kernel, self._constraints)
        self._hold(fixed)
        self._narrow(bounds or {})
        if not self.free:
            raise ValueError(
                "no parameter of the kernel is left to fit: all are named in fixed= or have "
                "requires_grad=False "
                "(kernel.requires_grad_() frees the parameters of an already fitted kernel)"
            )

    @property
    def free(self) -> list[Parameter]:
        """The parameters that are estimated, in the order of the vector."""
        return [p for p in self.all if p.free]

    @property
    def names(self) -> list[str]:
        """Names of the free parameters."""
        return [p.name for p in self.free]

    def start(self) -> Tensor:
        """The vector of the kernel's present values."""
        return torch.tensor([p.to_theta(p.start) for p in self.free], dtype=torch.float64)

    def natural(self, theta: Tensor) -> dict[str, float]:
        """Natural values by name, the held ones included."""
        values = iter(theta.tolist())
        return {p.name: p.to_natural(next(values)) if p.free else p.start for p in self.all}

    def covariance(self, theta: Tensor, grid: Grid, lags: Sequence[Tensor]) -> Tensor:
        """``k(h)`` at whole-number lags, one vector per axis, on their outer grid; differentiable in
        ``theta``.

        On periodic axes ``k`` is periodised as in :class:`~spatialdiff.covariance.TorusCovariance`.
        """
        if not self._mirrored:
            return self._values(theta, lags, grid)
        # k depends on |h| per axis only: a quarter of the lags (in two dimensions) says everything
        folded = [
            torch.minimum(lag % n, -lag % n) if wraps else lag.abs()
            for lag, n, wraps in zip(lags, grid.shape, grid.periodic, strict=True)
        ]
        unique, places = zip(*(torch.unique(lag, return_inverse=True) for lag in folded), strict=True)
        values = self._values(theta, unique, grid)
        for axis, place in enumerate(places):
            values = values.index_select(axis, place)
        return values

    def matrix(self, theta: Tensor, points: Tensor) -> Tensor:
        """``k(x, x')`` for all pairs of ``points`` ``(n, d)``, differentiable in ``theta``; shape ``(n,
        n)``."""
        return self._values(theta, points, None)

    def torus_density(self, theta: Tensor, grid: Grid) -> Tensor | None:
        """Eigenvalues on a periodic grid, ``(*grid)``, of full relative accuracy; ``None`` where the kernel
        has no closed form."""
        half = self._call(theta, None, grid)
        return None if half is None else full_spectrum(half, grid.shape)

    def is_stationary(self, theta: Tensor, points: Tensor) -> bool:
        """Whether ``k(x, x + h)`` is the same at several places ``x`` (also checked numerically, on
        ``points`` ``(n, d)``)."""
        if not self.kernel.is_stationary:
            return False
        with torch.no_grad():
            sites = points[:: max(1, len(points) // 7)][:8]
            shift = points.amax(dim=0) - points.amin(dim=0) + 1.0
            original, moved = (self.matrix(theta, x) for x in (sites, sites + 0.37 * shift))
        return bool(torch.allclose(original, moved, rtol=1e-8, atol=1e-10 * float(original.abs().amax())))

    def fitted(self, theta: Tensor, dtype: torch.dtype) -> Kernel:
        """A copy of the kernel with the values of ``theta``, of ``dtype``, that no longer requires
        gradients."""
        kernel = copy.deepcopy(self.kernel)
        with torch.no_grad():
            for path, raw in self.raw_values(theta).items():
                kernel.get_parameter(path).copy_(raw)
        fitted: Kernel = kernel.to(dtype).requires_grad_(False)
        return fitted

    def _values(self, theta: Tensor, where: Tensor | Sequence[Tensor], grid: Grid | None) -> Tensor:
        value = self._call(theta, where, grid)
        assert value is not None
        return value

    def _call(
        self, theta: Tensor, where: Tensor | Sequence[Tensor] | None, grid: Grid | None
    ) -> Tensor | None:
        raw = {f"kernel.{path}": value for path, value in self.raw_values(theta).items()}
        value: Tensor | None = torch.func.functional_call(self._evaluator, raw, (where, grid))
        return value

    def raw_values(self, theta: Tensor) -> dict[str, Tensor]:
        """Raw parameters by path in the kernel, differentiable in ``theta``."""
        entries: dict[str, list[Tensor]] = {}
        position = 0
        for p in self.all:
            if p.free:
                value = theta[position].exp() if p.log else theta[position]
                position += 1
            else:
                value = torch.tensor(p.start, dtype=torch.float64)
            entries.setdefault(p.path, []).append(value)
        raw = {}
        for path, values in entries.items():
            natural = torch.stack(values).reshape(self._raw[path].shape)
            constraint = self._constraints[path]
            raw[path] = natural if constraint is None else constraint.inverse_transform(natural)
        return raw

    def _matching(self, name: str) -> list[Parameter]:
        found = [p for p in self.all if p.name == name or p.name.startswith(f"{name}[")]
        if not found:
            raise ValueError(
                f"the kernel has no parameter {name!r}; it has {', '.join(p.name for p in self.all)}"
            )
        return found

    def _hold(self, fixed: Iterable[str] | Mapping[str, float]) -> None:
        names = [fixed] if isinstance(fixed, str) else list(fixed)
        for name in names:
            for p in self._matching(name):
                if isinstance(fixed, Mapping):
                    value = float(fixed[name])
                    if not p.lower <= value <= p.upper or (p.log and value <= 0.0):
                        raise ValueError(
                            f"fixed value {value} of {p.name} is outside its bounds ({p.lower:g}, "
                            f"{p.upper:g})"
                        )
                    p.start = value
                p.free = False

    def _narrow(self, bounds: Mapping[str, tuple[float, float]]) -> None:
        for name, (lower, upper) in bounds.items():
            for p in self._matching(name):
                low, high = max(p.lower, float(lower)), min(p.upper, float(upper))
                if not low < high or (p.log and high <= 0.0):
                    raise ValueError(
                        f"bounds ({lower:g}, {upper:g}) for {p.name} leave nothing of its range "
                        f"({p.lower:g}, {p.upper:g})"
                    )
                p.lower, p.upper, p.bounded_by_user = low, high, True


def _describe(kernel: Kernel, constraints: Mapping[str, object]) -> list[Parameter]:
    found: list[Parameter] = []
    for path, value in kernel.named_parameters():
        owner_path, _, raw_name = path.rpartition(".")
        owner = type(kernel.get_submodule(owner_path)).__name__
        attribute = raw_name.removeprefix("raw_")
        constraint = constraints.get(path)
        lower, upper = -math.inf, math.inf
        natural = value.detach()
        if constraint is not None:
            lower = float(torch.as_tensor(constraint.lower_bound).max())  # type: ignore[attr-defined]
            upper = float(torch.as_tensor(constraint.upper_bound).min())  # type: ignore[attr-defined]
            natural = constraint.transform(natural)  # type: ignore[attr-defined]
        for index, entry in enumerate(natural.reshape(-1).tolist()):
            found.append(
                Parameter(
                    name=f"{attribute}[{index}]" if natural.numel() > 1 else attribute,
                    path=path,
                    index=index,
                    attribute=attribute,
                    owner=owner,
                    log=lower >= 0.0,
                    start=entry,
                    lower=lower,
                    upper=upper,
                    free=value.requires_grad,
                )
            )
    return _readable(found)


def _readable(parameters: list[Parameter]) -> list[Parameter]:
    """Unique names: ``variance``; qualified by the kernel (``matern.variance``), numbered
    (``matern2.variance``) where needed."""

    def short(p: Parameter) -> str:
        if p.is_nugget:
            return p.name.replace(p.attribute, "nugget", 1)
        return p.name

    owners: dict[str, list[str]] = {}
    for p in parameters:
        paths = owners.setdefault(p.owner, [])
        owner_path = p.path.rpartition(".")[0]
        if owner_path not in paths:
            paths.append(owner_path)
    counts = Counter(short(p) for p in parameters)
    named = []
    for p in parameters:
        name = short(p)
        if counts[name] > 1:
            kind = p.owner.removesuffix("Kernel").lower() or p.owner.lower()
            paths = owners[p.owner]
            number = str(paths.index(p.path.rpartition(".")[0]) + 1) if len(paths) > 1 else ""
            name = f"{name}{number}" if p.is_nugget else f"{kind}{number}.{name}"
        named.append(replace(p, name=name))
    return named
