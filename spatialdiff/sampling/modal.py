r"""The modes of a field side by side, as independent sites of one variance each.

Where Γ and the data's covariance are diagonal in one basis, every linear operation of a sampler acts on the
modes one by one. The same law, denoiser and solver therefore run on a domain whose sites *are* the modes,
with :math:`\Gamma = \mathrm{diag}(\gamma_k)` and data :math:`N(0, \mathrm{diag}(c_k))`, and what comes out at
site k is what the sampler makes of mode k: no transform, and no rounding that leaks from strong modes to weak
ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.denoisers.gaussian import GaussianDenoiser
from spatialdiff.domains import Grid
from spatialdiff.processes import Law
from spatialdiff.processes.base import Dynamics
from spatialdiff.sampling.adaptive import Adaptive
from spatialdiff.sampling.base import Noise, Solver, run
from spatialdiff.sampling.sample import SOLVERS

White = Callable[[tuple[int, ...]], Tensor]
#: values of a state that one run of a solver may hold
LIMIT = 2**24
#: a solver is not linear where its response to a combination of draws is this far from the combined responses
LINEAR = 1e-6


class ModalBasis(Basis):
    """Modes as sites: coefficients are the field itself, with the weights that the modes had."""

    def __init__(self, modes: torch.Size, weights: Tensor) -> None:
        super().__init__(Grid(tuple(modes)))
        self.modes = torch.Size(modes)
        self._weights = weights

    def analyze(self, x: Tensor) -> Tensor:
        return x

    def synthesize(self, c: Tensor) -> Tensor:
        return c

    @property
    def weights(self) -> Tensor:
        return self._weights


class DiagonalCovariance(Covariance):
    """Independent sites with variances of their own: ``Γ = diag(v)``, ``v`` ``(*modes)`` or ``(C, *modes)``.

    Zero variances are allowed; ``whiten``, ``solve`` and ``log_det`` then give infinities.
    """

    method = "diagonal"
    values: Tensor

    def __init__(self, basis: ModalBasis, values: Tensor) -> None:
        per_channel = values.ndim > len(basis.modes)
        super().__init__(basis.grid, values.shape[0] if per_channel else None)
        self.basis = basis
        self.register_buffer("values", values.detach().double())
        self.double()

    def _color(self, z: Tensor) -> Tensor:
        return z * self.values.sqrt().to(z)

    def _whiten(self, x: Tensor) -> Tensor:
        return x / self.values.sqrt().to(x)

    def _matmul(self, x: Tensor) -> Tensor:
        return x * self.values.to(x)

    def _solve(self, x: Tensor) -> Tensor:
        return x / self.values.to(x)

    def _log_det(self) -> Tensor:
        return self.values.log().sum(tuple(range(-self.domain.ndim, 0)))

    def _variance(self) -> Tensor:
        return self.values

    def spatial_eigenvalues(self) -> Tensor:
        return self.values


def on_modes(dynamics: Any, covariance: DiagonalCovariance, seen: dict[int, Any] | None = None) -> Any:
    """A copy of a law (or of a bridge inside it) with the modes for sites and no offset.

    Coefficients are those of the original, their own modes included: only Γ and the basis are exchanged. The
    offset is left out, since it is the same for every response to noise.
    """
    seen = {} if seen is None else seen
    if id(dynamics) in seen:
        return seen[id(dynamics)]
    twin = copy.copy(dynamics)
    seen[id(dynamics)] = twin
    # a module's dictionaries are shared by a shallow copy
    for name in ("_modules", "_buffers", "_parameters"):
        twin.__dict__[name] = dict(twin.__dict__[name])
    twin.covariance = covariance
    if isinstance(dynamics, Law):
        if dynamics.basis is not None:
            twin.basis = covariance.basis
        twin.offset = twin.offset_rate = nothing
    if "covariances" in twin._modules:
        # one Γ for each variable: as multiples of the first, with which they leave the sites
        twin._buffers.update(zip(("_drift", "_diffusion", "_initial"), dynamics.matrices(), strict=True))
        del twin._modules["covariances"]
        twin._each, twin._kept = None, []
    for owner in (twin.__dict__, twin._modules):
        for name, value in list(owner.items()):
            if isinstance(value, Dynamics):
                owner[name] = on_modes(value, covariance, seen)
            elif isinstance(value, tuple) and any(isinstance(part, Dynamics) for part in value):
                owner[name] = tuple(
                    on_modes(part, covariance, seen) if isinstance(part, Dynamics) else part for part in value
                )
    return twin


def nothing(t: Tensor | float) -> Tensor:
    """An offset of 0."""
    return torch.zeros((), dtype=torch.float64)


class ModalProblem:
    """A law and the variances of noise and data, mode by mode, and what a solver makes of them.

    Args:
        law: the law of the state given the data.
        weights: w_k ``(*modes)``; gamma, data: γ_k and c_k, ``(*modes)`` or ``(C, *modes)``, of one shape.
        mean: ``√w_k |μ_k|`` of the data's mean, ``(C, *modes)``; None where it is 0.
    """

    def __init__(
        self, law: Law, weights: Tensor, gamma: Tensor, data: Tensor, mean: Tensor | None = None
    ) -> None:
        self.original = law
        self.mean = mean
        self.weights, self.gamma, self.data = weights, gamma, data
        self.sites = ModalBasis(weights.shape, weights)
        self.covariance = DiagonalCovariance(self.sites, gamma)
        twin = on_modes(law, self.covariance)
        variances = DiagonalCovariance(self.sites, data)
        self.denoiser = GaussianDenoiser(twin, variances)
        ones = torch.ones(self.covariance.event_shape, dtype=torch.float64)
        self.shifted = GaussianDenoiser(twin, variances, mean=ones)

    def merged(self, groups: int) -> ModalProblem:
        """At most ``groups`` modes, of neighbouring ρ_k = c_k/γ_k, with Γ = 1 and weights ``w_k γ_k``.

        Where the law has one set of coefficients the error of a mode is γ_k times a function of ρ_k.
        """
        if self.original.basis is not None:
            return self
        weights = (self.weights * self.gamma).reshape(-1)
        ratio = (self.data / self.gamma).reshape(-1)
        order = ratio.argsort()
        weights, ratio = weights[order], ratio[order]
        positive = ratio > 0
        level = torch.where(positive, ratio, 1.0).log()
        low, high = level[positive].min(), level[positive].max()
        place = (level - low) / (high - low).clamp(min=1e-12) * (groups - 2)
        index = torch.where(positive, 1 + place.round().long(), 0)
        total = torch.zeros(groups, dtype=torch.float64).index_add(0, index, weights)
        mean = torch.zeros(groups, dtype=torch.float64).index_add(0, index, weights * level)
        kept = total > 0
        shared = torch.where(kept, mean / total.clamp(min=1e-300), 0.0).exp()
        shared[0] = 0.0
        square = None
        if self.mean is not None:
            # the mean of a mode is carried by a factor that depends on ρ alone, too
            power = self.mean.square().expand(-1, *self.weights.shape).sum(0).reshape(-1)
            if self.data.ndim > self.weights.ndim:
                power = self.mean.square().reshape(-1)
            square = torch.zeros(groups, dtype=torch.float64).index_add(0, index, power[order])
            kept = kept | (square > 0)
            square = square[kept].sqrt()[None]
        return ModalProblem(self.original, total[kept], torch.ones_like(total[kept]), shared[kept], square)

    def solver(
        self,
        name: str,
        options: Mapping[str, Any],
        white: White | None = None,
        rows: int = 1,
        *,
        shifted: bool = False,
    ) -> Solver:
        """The solver on the modes; raises ``ValueError`` for one that says it is not linear."""
        if name not in SOLVERS:
            raise ValueError(f"unknown solver {name!r}; the solvers are {', '.join(sorted(SOLVERS))}")
        if issubclass(SOLVERS[name], Adaptive):
            raise not_linear(name)
        draws = Noise(self.denoiser.law, rows, self.denoiser.channels, white=white)
        return SOLVERS[name](self.shifted if shifted else self.denoiser, draws, {}, **options)

    def respond(
        self, solver: str, times: Tensor, options: Mapping[str, Any], white: White, rows: int
    ) -> Tensor:
        """Output ``(rows, C, *modes)`` for given white draws, differentiable in ``times``."""
        return follow(self.solver(solver, options, white, rows), times)

    @torch.no_grad()
    def draws(self, solver: str, times: Tensor, options: Mapping[str, Any]) -> list[int]:
        """How many independent white fields each draw of the solver holds: one for each variable."""
        units: list[int] = []

        def count(shape: tuple[int, ...]) -> Tensor:
            white = zeros(shape)
            units.append(white.numel() // self.data.numel())
            return white

        self.respond(solver, times.detach(), options, count, 1)
        return units

    def output(
        self, solver: str, times: Tensor, options: Mapping[str, Any], units: list[int] | None = None
    ) -> Tensor:
        """ĉ_k, the variances of the output, shape of ``data``, differentiable in ``times``.

        ``units`` is what ``draws`` found for as many times.
        """
        units = self.draws(solver, times, options) if units is None else units
        total = torch.zeros_like(self.data)
        at_once = max(1, LIMIT // (self.data.numel() * self.original.variables))
        for first in range(0, sum(units), at_once):
            rows = min(at_once, sum(units) - first)
            white = Impulses(units, first, rows, self.data.numel())
            response = self.respond(solver, times, options, white, rows)
            total = total + response.square().sum(0).reshape(self.data.shape)
        return total

    @torch.no_grad()
    def check_linear(self, solver: str, times: Tensor, options: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` unless the response to ``3 z - z'`` is that to z and to z', combined."""

        def white(first: float, second: float) -> White:
            generator = torch.Generator().manual_seed(0)

            def draw(shape: tuple[int, ...]) -> Tensor:
                pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
                return first * pair[0] + second * pair[1]

            return draw

        both, one, other = (
            self.respond(solver, times, options, white(*weights), 1)
            for weights in ((3.0, -1.0), (1.0, 0.0), (0.0, 1.0))
        )
        if not float((both - (3.0 * one - other)).norm()) <= LINEAR * float(both.norm()):
            raise not_linear(solver)

    def mean_square(self, solver: str, times: Tensor, options: Mapping[str, Any]) -> Tensor:
        """``|μ̂ - μ|²`` of a law without offset, differentiable in ``times``."""
        if self.mean is None:
            return torch.zeros((), dtype=torch.float64)
        method = self.solver(solver, options, zeros, shifted=True)
        return (self.mean * (follow(method, times)[0] - 1.0)).square().sum()

    def parts(self, output: Tensor) -> Tensor:
        """``w_k (√ĉ_k - √c_k)²`` per mode."""
        gap = output.clamp(min=1e-300).sqrt() - self.data.sqrt()
        return self.weights * gap.square()


class Impulses:
    """White draws of a batch: row j is 0 but for field ``first + j`` of all draws, 1 at every site."""

    def __init__(self, units: list[int], first: int, rows: int, sites: int) -> None:
        self.units = iter(units)
        self.next = -first
        self.rows, self.sites = rows, sites

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        count = next(self.units)
        white = torch.zeros(self.rows, count, self.sites, dtype=torch.float64)
        for unit in range(count):
            if 0 <= self.next + unit < self.rows:
                white[self.next + unit, unit] = 1.0
        self.next += count
        return white.reshape(shape)


def zeros(shape: tuple[int, ...]) -> Tensor:
    """No noise."""
    return torch.zeros(shape, dtype=torch.float64)


def follow(method: Solver, times: Tensor) -> Tensor:
    """The data variable of the last state of a solver on ``times``, differentiable in them."""
    return run(method, times, method.start())[-1][:, : method.noise.channels]


def not_linear(solver: str) -> ValueError:
    """The error for a solver whose steps depend on its state."""
    return ValueError(
        f"solver {solver!r} is not linear in its state (its steps depend on it), so that its output on "
        "Gaussian data is not Gaussian; measure its error on samples, or choose another solver"
    )
