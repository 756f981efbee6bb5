r"""Densities from which the times of an evidence bound are drawn.

The integral of a bound runs over `λ = log I`, I the information of the state. Every proposal is a density
that is constant between given `λ`: its integral is exactly one, its quantile exact, whatever it is made from.

- `UniformProposal`: uniform in λ;
- `TimeProposal`: uniform in t, as the process runs;
- `AnalyticProposal`: proportional to the integrand under a Gaussian model of the data, whose integral
  `Σ_k log(1 + ρ_k I)` is closed;
- `LearnedProposal`: proportional to the root mean square of the integrands that were observed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.objectives.gaussian_terms import information
from spatialdiff.objectives.interval import Interval
from spatialdiff.processes import Law

PROPOSALS = ("analytic", "learned", "log_snr", "time")


class Proposal(nn.Module, ABC):
    """A density of `λ = log I` on an interval, constant on `bins` equal parts of it."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins={bins}; a proposal needs at least one")
        self.bins = bins

    @abstractmethod
    def masses(self, law: Law, interval: Interval) -> Tensor:
        """The probabilities of the parts `(bins,)`, in the order of λ, positive, of sum one, float64."""

    def observe(self, law: Law, interval: Interval, levels: Tensor, values: Tensor) -> None:
        """Learn from the integrands per unit λ, `values`, at `levels`; nothing unless the proposal learns."""

    def edges(self, interval: Interval, device: torch.device) -> Tensor:
        """The ends of the parts, `(bins + 1,)`."""
        return torch.linspace(interval.low, interval.high, self.bins + 1, dtype=torch.float64, device=device)

    def quantile(self, law: Law, interval: Interval, p: Tensor) -> tuple[Tensor, Tensor]:
        """The levels below which the density has mass `p`, and the density there; shapes of `p`, float64."""
        with torch.no_grad():
            masses = self.masses(law, interval)
            cumulative = masses.cumsum(0)
            index = torch.searchsorted(cumulative, p.contiguous()).clamp(max=self.bins - 1)
            below = cumulative[index] - masses[index]
            share = ((p - below) / masses[index]).clamp(0.0, 1.0)
            width = (interval.high - interval.low) / self.bins
            return interval.low + width * (index + share), masses[index] / width

    def density(self, law: Law, interval: Interval, levels: Tensor) -> Tensor:
        """The density at `levels`, shape kept; 0 outside the interval."""
        with torch.no_grad():
            width = (interval.high - interval.low) / self.bins
            index = ((levels - interval.low) / width).floor().long().clamp(0, self.bins - 1)
            inside = (levels >= interval.low) & (levels <= interval.high)
            return torch.where(inside, self.masses(law, interval)[index] / width, 0.0)


class UniformProposal(Proposal):
    """Uniform in λ."""

    def __init__(self) -> None:
        super().__init__(1)

    def masses(self, law: Law, interval: Interval) -> Tensor:
        return torch.ones(1, dtype=torch.float64, device=law.covariance.device)


class TimeProposal(Proposal):
    """Uniform in t between the ends of the interval."""

    def __init__(self, bins: int = 256) -> None:
        super().__init__(bins)

    def masses(self, law: Law, interval: Interval) -> Tensor:
        times = law.time_of_log_snr(self.edges(interval, law.covariance.device)).detach()
        steps = times.diff().abs()
        return mixed(steps, 1e-6)


class AnalyticProposal(Proposal):
    """Proportional to the integrand `Σ_k ρ_k I/(1 + ρ_k I)` of a Gaussian model, by its closed-form integral.

    Args:
        model: the fitted law of the data; where absent the data are taken as `N(0, Γ)`, `ρ = 1`.
        floor: share of the mass that is spread uniformly over λ, against what the model does not know.
        bins: parts of the interval.

    Raises:
        ValueError: `floor` outside `[0, 1)`.
    """

    def __init__(self, model: GaussianModel | None = None, *, floor: float = 0.05, bins: int = 128) -> None:
        super().__init__(bins)
        if not 0.0 <= floor < 1.0:
            raise ValueError(f"floor={floor:g}; needed a share from 0 to below 1")
        self._model = (model,)  # a tuple: the model is registered in the denoiser
        self.floor = floor
        self._cache: tuple[Interval, Tensor | None, Tensor] | None = None

    def masses(self, law: Law, interval: Interval) -> Tensor:
        model = self._model[0]
        with torch.no_grad():
            spectra = None if model is None else model.spectra()
            rho = None if spectra is None else spectra[2] / spectra[1]
            if self._cache is not None and self._cache[0] == interval and equal(self._cache[1], rho):
                return self._cache[2]
            edges = self.edges(interval, law.covariance.device)
            integral = self.integral(law, edges, rho)
            masses = mixed(integral.diff().clamp_min(0.0), max(self.floor, 1e-6))
        self._cache = (interval, rho, masses)
        return masses

    def integral(self, law: Law, levels: Tensor, rho: Tensor | None) -> Tensor:
        """`Σ_k log(1 + ρ_k I_k)` where `log I`, on average over the modes, has the values `levels`."""
        values = levels.exp() if law.basis is None else information(law, law.time_of_log_snr(levels))
        # one level at a time: all modes of a large field at all levels would not fit into memory
        return torch.stack([(value if rho is None else rho * value).log1p().sum() for value in values])


class LearnedProposal(Proposal):
    """Proportional to the root mean square of the integrands seen in each part, kept as a running mean.

    Parts without observations have the density of `start`. State is saved with the module. The density that
    minimises the variance of an importance-sampled integral is the root mean square of the integrand.

    Args:
        start: the proposal used until enough has been seen.
        bins: parts of the interval. decay: of the running means, per observation of a part.
        floor: share of the mass spread uniformly over λ.
        warmup: observations of a part before it is believed.

    Raises:
        ValueError: `decay` or `floor` outside `(0, 1)`.
    """

    squares: Tensor
    counts: Tensor

    def __init__(
        self,
        start: Proposal | None = None,
        *,
        bins: int = 32,
        decay: float = 0.98,
        floor: float = 0.1,
        warmup: int = 8,
    ) -> None:
        super().__init__(bins)
        if not 0.0 < decay < 1.0 or not 0.0 < floor < 1.0:
            raise ValueError(f"decay={decay:g} and floor={floor:g}; both must lie between 0 and 1")
        self.start = UniformProposal() if start is None else start
        self.decay, self.floor, self.warmup = decay, floor, warmup
        self.register_buffer("squares", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.int64))

    def masses(self, law: Law, interval: Interval) -> Tensor:
        device = law.covariance.device
        edges = self.edges(interval, device)
        centres = 0.5 * (edges[1:] + edges[:-1])
        before = self.start.density(law, interval, centres)
        before = mixed(before, self.floor)
        seen = (self.counts >= self.warmup).to(device)
        if not bool(seen.all()):
            return before
        return mixed(self.squares.to(device).sqrt(), self.floor)

    def observe(self, law: Law, interval: Interval, levels: Tensor, values: Tensor) -> None:
        """Learn from integrands per unit λ, `values` `(n,)`, at `levels` `(n,)`."""
        width = (interval.high - interval.low) / self.bins
        index = (
            ((levels - interval.low) / width).floor().long().clamp(0, self.bins - 1).to(self.counts.device)
        )
        fresh = values.detach().to(self.squares).square()
        count = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(index))
        total = torch.zeros_like(self.squares).index_add_(0, index, fresh)
        hit = count > 0
        mean = total / count.clamp_min(1)
        # a plain mean to begin with, a running one later
        keep = torch.minimum(self.counts / (self.counts + count).clamp_min(1), self.decay**count)
        self.squares.copy_(torch.where(hit, keep * self.squares + (1.0 - keep) * mean, self.squares))
        self.counts.add_(count)


def mixed(weights: Tensor, floor: float) -> Tensor:
    """Probabilities proportional to `weights`, with the share `floor` spread evenly."""
    total = weights.sum()
    even = torch.full_like(weights, 1.0 / len(weights))
    return even if float(total) <= 0.0 else (1.0 - floor) * weights / total + floor * even


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether both are None, or hold the same."""
    if first is None or second is None:
        return first is second
    return first is second or (first.shape == second.shape and torch.equal(first, second))


def as_proposal(
    proposal: Proposal | str | None, denoiser: PosteriorMean, *, default: str = "analytic"
) -> Proposal:
    """A proposal as it is, or by name; `"analytic"` is under the denoiser's fitted law where it has one.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(proposal, Proposal):
        return proposal
    proposal = default if proposal is None else proposal
    analytic = AnalyticProposal(getattr(denoiser, "gaussian", None))
    if proposal == "analytic":
        return analytic
    if proposal == "learned":
        return LearnedProposal(analytic)
    if proposal == "log_snr":
        return UniformProposal()
    if proposal == "time":
        return TimeProposal()
    raise ValueError(f"unknown proposal {proposal!r}; the choices are {', '.join(PROPOSALS)}, or a Proposal")
