r"""A kernel's parameters as one unconstrained-looking vector with readable names.

Any gpytorch kernel stores raw parameters and maps them by constraints to natural ones. Likelihoods are
maximised in :math:`\theta = \log(\text{natural})` where the constraint keeps the parameter positive, and in
the natural value otherwise, so that the scale of the units drops out and standard errors of positive
parameters are relative ones (delta method: :math:`\mathrm{se}(e^\theta) = e^\theta\,\mathrm{se}(\theta)`).
What each parameter is called: :mod:`.naming`.

The kernel is evaluated functionally (``torch.func.functional_call``): the caller's kernel is never modified.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.covariance.grids.lattice import torus_eigenvalues
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.spectra import full_spectrum
from spatialdiff.fitting.naming import Parameter, describe, triangular
from spatialdiff.fitting.storage import constraints_of
from spatialdiff.kernels import Coregionalization


class _Evaluator(nn.Module):
    def __init__(self, kernel: Kernel | Coregionalization) -> None:
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
            if isinstance(self.kernel, Coregionalization):
                blocks = [torch.kron(b, k(where, where).to_dense()) for b, k in self.kernel.terms]
                return torch.stack(blocks).sum(0)
            value: Tensor = self.kernel(where, where).to_dense()
        return value


class KernelParameters:
    """A float64 copy of ``kernel`` seen as a function of a vector of its free parameters.

    Args:
        kernel: any gpytorch kernel without batch shape, or a `Coregionalization`, whose matrices are
            estimated and whose kernels' own scales are held.
        fixed: names to hold at their present value, or a mapping of names to values to hold them at.
            ``"lengthscale"`` stands for every ``"lengthscale[i]"``. Parameters that do not require a gradient
            are held as well.
        bounds: natural-scale ``(lower, upper)`` by name; they narrow the kernel's own constraints.
        ties: names that take the value of another (``{"lengthscale[1]": "lengthscale[0]"}``), or groups of
            names that share the value of the first; ``["lengthscale"]`` is the group of every
            ``"lengthscale[i]"``.

    Raises:
        TypeError: for something that is not a gpytorch kernel.
        ValueError: for a name that the kernel does not have, a value outside its bounds, a parameter that is
            tied twice or to itself, or a kernel with nothing left to fit.
    """

    def __init__(
        self,
        kernel: Kernel | Coregionalization,
        fixed: Iterable[str] | Mapping[str, float] = (),
        bounds: Mapping[str, tuple[float, float]] | None = None,
        ties: Mapping[str, str] | Iterable[Iterable[str]] = (),
    ) -> None:
        if not isinstance(kernel, Kernel | Coregionalization):
            raise TypeError(f"kernel must be a gpytorch.kernels.Kernel, got {type(kernel).__name__}")
        if len(kernel.batch_shape):
            raise ValueError(
                f"kernels with a batch shape cannot be fitted, got batch shape {tuple(kernel.batch_shape)}"
            )
        self.kernel: Kernel = copy.deepcopy(kernel).to(device="cpu", dtype=torch.float64)
        if isinstance(self.kernel, Coregionalization):
            with torch.no_grad():
                for root in self.kernel.roots:
                    root.copy_(triangular(root))
        self._evaluator = _Evaluator(self.kernel)
        self._single = not isinstance(self.kernel, Coregionalization)
        self._mirrored = self._single and reflection_symmetric(self.kernel)
        self._constraints = constraints_of(self.kernel)
        self._shapes = {name: value.shape for name, value in self.kernel.named_parameters()}
        self.all = describe(self.kernel, self._constraints)
        self._hold(fixed)
        self._narrow(bounds or {})
        self._tie(ties)
        if not self.free:
            raise ValueError(
                "no parameter of the kernel is left to fit: all are in fixed= or have requires_grad=False "
                "(kernel.requires_grad_() frees the parameters of an already fitted kernel)"
            )

    @property
    def held(self) -> list[str]:
        """Names of the parameters that keep their value."""
        return [p.name for p in self.all if not p.free and p.tied is None]

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
        found = {p.name: p.to_natural(next(values)) if p.free else p.start for p in self.all}
        return {p.name: found[p.tied or p.name] for p in self.all}

    def standard_errors(self, theta: Tensor, covariance: Tensor) -> dict[str, float]:
        """Standard errors of `natural`, from the covariance ``(p, p)`` of ``theta``; 0 where held, NaN where
        unknown."""
        values = self.natural(theta)
        errors = dict.fromkeys(values, 0.0)
        for i, p in enumerate(self.free):
            variance = float(covariance[i, i])
            error = math.sqrt(variance) if variance >= 0.0 else math.nan
            errors[p.name] = error * (values[p.name] if p.log else p.step)
        return {p.name: errors[p.tied or p.name] for p in self.all}

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
        n)``.

        Of a `Coregionalization` of ``C`` channels ``(C n, C n)``, channel after channel: row ``c n + i``.
        """
        return self._values(theta, points, None)

    def torus_density(self, theta: Tensor, grid: Grid) -> Tensor | None:
        """Eigenvalues on a periodic grid, ``(*grid)``, of full relative accuracy; ``None`` where the kernel
        has no closed form."""
        half = self._call(theta, None, grid) if self._single else None
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
        values: dict[str, Tensor] = {}
        for position, p in enumerate(self.free):
            values[p.name] = theta[position].exp() if p.log else theta[position] * p.step
        entries: dict[str, list[tuple[int, Tensor]]] = {}
        for p in self.all:
            value = values.get(p.tied or p.name)
            if value is None:
                value = torch.tensor(p.start, dtype=torch.float64)
            entries.setdefault(p.path, []).append((p.index, value))
        raw = {}
        for path, shape in self._shapes.items():
            # entries above the diagonal of a root are none of the parameters, and 0
            places, numbers = zip(*entries[path], strict=True)
            natural = torch.zeros(shape.numel(), dtype=torch.float64)
            natural = natural.index_copy(0, torch.tensor(places), torch.stack(numbers)).reshape(shape)
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

    def _tie(self, ties: Mapping[str, str] | Iterable[Iterable[str]]) -> None:
        if isinstance(ties, Mapping):
            groups = [[leader, follower] for follower, leader in ties.items()]
        else:
            groups = [[group] if isinstance(group, str) else list(group) for group in ties]
        by_name = {p.name: p for p in self.all}
        for group in groups:
            leader, *followers = [p for name in group for p in self._matching(name)]
            leader = by_name[leader.tied or leader.name]
            if not followers:
                raise ValueError(f"a tie needs at least two parameters, got {leader.name} alone")
            for p in followers:
                if p is leader or p.tied or any(q.tied == p.name for q in self.all):
                    raise ValueError(f"{p.name} is tied twice, or to itself: name each parameter once")
                if not p.free:
                    raise ValueError(
                        f"{p.name} is held, and cannot take the value of {leader.name}: tie {leader.name} to "
                        f"it, or leave {p.name} out of fixed="
                    )
                if p.log != leader.log:
                    raise ValueError(
                        f"{p.name} and {leader.name} cannot share a value: only one of them has to be "
                        "positive"
                    )
                low, high = max(leader.lower, p.lower), min(leader.upper, p.upper)
                if leader.free and not low < high:
                    raise ValueError(f"no value is within the bounds of both {leader.name} and {p.name}")
                if not leader.free and not p.lower <= leader.start <= p.upper:
                    raise ValueError(
                        f"{leader.name} = {leader.start:g} is outside the bounds of {p.name}, which is tied "
                        "to it"
                    )
                leader.lower, leader.upper = low, high
                leader.bounded_by_user |= p.bounded_by_user
                p.free, p.tied = False, leader.name
