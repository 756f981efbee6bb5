r"""Which times an objective looks at.

A distribution is a quantile function; stratified draws are `q((U + i)/n mod 1)` with one uniform `U` per
batch, so that a batch covers all times evenly (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).

| name        | density                                                            |
|-------------|--------------------------------------------------------------------|
| `"uniform"` | uniform in `t`                                                     |
| `"log_snr"` | uniform in `log(σ/α)` between `sigma_min` and `sigma_max`          |
| `"edm"`     | `log(σ/α) ~ N(mean, std²)`, restricted to the same interval |

The last is the training distribution of Karras et al. 2022 (arXiv 2206.00364, table 1). Where coefficients
differ from mode to mode, `log(σ/α)` is that of the modes that turn at the time
(`processes.active_levels`), so that times reach from where the slowest mode is noise to where all modes are
data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.denoisers import Denoiser
from spatialdiff.processes import Law
from spatialdiff.processes.active_levels import ActiveLevels, active_levels

DISTRIBUTIONS = ("edm", "log_snr", "uniform")


@dataclass(frozen=True)
class TimeDistribution:
    """Random times in the open interval between a law's start and end.

    Args:
        name: `"edm"`, `"log_snr"` or `"uniform"`.
        mean, std: of `log(σ/α)` for `"edm"`. Noise levels are relative to Γ: where Γ is fitted to the data
            all scales drown at `σ/α = 1`, the default's centre; white noise on smooth fields reaches its
            largest scales only at higher levels.
        sigma_min, sigma_max: smallest and largest `σ/α`, narrowed to what the law reaches.
        margin: share of the time interval left out at each end by `"uniform"`.
        stratified: one draw in each of `n` equally probable intervals, instead of independent draws.

    Raises:
        ValueError: an unknown name, or parameters out of range.
    """

    name: str = "edm"
    mean: float = 0.0
    std: float = 1.6
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    margin: float = 1e-4
    stratified: bool = True

    def __post_init__(self) -> None:
        if self.name not in DISTRIBUTIONS:
            raise ValueError(
                f"unknown time distribution {self.name!r}; the choices are {', '.join(DISTRIBUTIONS)}"
            )
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"needed 0 < sigma_min < sigma_max, got {self.sigma_min:g} and {self.sigma_max:g}"
            )
        if self.std <= 0.0 or not 0.0 < self.margin < 0.5:
            raise ValueError(
                f"needed std > 0 and 0 < margin < 0.5, got std={self.std:g} and margin={self.margin:g}"
            )

    @classmethod
    def fitted(cls, denoiser: Denoiser) -> TimeDistribution:
        """The `"edm"` distribution over the noise levels at which the fitted data emerge (`noise_range`).

        With `l` and `h` the smallest and the largest `log √(c_k/γ_k)`, `log(σ/α)` has the mean `(l + h)/2`
        and the variance `1 + (h - l)²/12`: a unit normal around a level drawn evenly between them. Where Γ is
        proportional to the data's covariance all modes emerge at once, and this is a unit normal.

        Raises:
            ValueError: the denoiser was built without `data=`.
        """
        if denoiser.gaussian is None:
            raise ValueError(
                "TimeDistribution.fitted needs the fitted law of the data: build the Denoiser with data= the "
                "result of sd.fit"
            )
        low, high = (math.log(level) for level in denoiser.gaussian.noise_range(margin=0.0))
        ends = denoiser.gaussian.noise_range()
        spread = math.sqrt(1.0 + (high - low) ** 2 / 12.0)
        return cls("edm", 0.5 * (low + high), spread, sigma_min=ends[0], sigma_max=ends[1])

    def draw(self, law: Law, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Times `(n,)`, float64, on the device of the law's Γ."""
        device = law.covariance.device
        size = 1 if self.stratified else n
        uniform = torch.rand(size, generator=generator, dtype=torch.float64, device=device)
        if self.stratified:
            uniform = (uniform + torch.arange(n, dtype=torch.float64, device=device) / n).remainder(1.0)
        return self.quantile(law, uniform)

    def quantile(self, law: Law, p: Tensor) -> Tensor:
        """The time below which the distribution has mass `p` in the order from the data outwards, shape of
        `p`.
        """
        if self.name == "uniform":
            fraction = self.margin + (1.0 - 2.0 * self.margin) * p
            return law.end_time + (law.start_time - law.end_time) * fraction
        low, high = self.levels(law)
        if self.name == "log_snr":
            level = low + (high - low) * p
        else:
            ends = torch.tensor([low, high], dtype=torch.float64, device=p.device)
            below, above = torch.special.ndtr((ends - self.mean) / self.std)
            level = (self.mean + self.std * torch.special.ndtri(below + (above - below) * p)).clamp(low, high)
        active = self.active(law)
        return law.time_of_log_snr(-2.0 * level) if active is None else active.time(-2.0 * level)

    def density(self, law: Law, t: Tensor) -> Tensor:
        """The density of `log I = 2 log(α/σ)` at times `t` drawn here, shape of `t`, float64."""
        with torch.no_grad():
            if self.name == "uniform":
                length = abs(law.start_time - law.end_time) * (1.0 - 2.0 * self.margin)
                return 1.0 / (length * law.log_snr_rate(t).abs())
            low, high = self.levels(law)
            active = self.active(law)
            level = -0.5 * (law.log_snr(t) if active is None else active.level(t))
            # of the law's own log I, where the levels are others
            change = 1.0 if active is None else active.rate(t) / law.log_snr_rate(t).abs()
            if self.name == "log_snr":
                return torch.full_like(level, 0.5 / (high - low)) * change
            ends = torch.tensor([low, high], dtype=torch.float64, device=t.device)
            below, above = torch.special.ndtr((ends - self.mean) / self.std)
            normal = torch.exp(-0.5 * ((level - self.mean) / self.std).square())
            density: Tensor = 0.5 * normal / (math.sqrt(2.0 * math.pi) * self.std * (above - below))
            return density * change

    def active(self, law: Law) -> ActiveLevels | None:
        """What stands for `log I` where coefficients differ from mode to mode."""
        if law.basis is None:
            return None
        return active_levels(law, -2.0 * math.log(self.sigma_max), -2.0 * math.log(self.sigma_min))

    def levels(self, law: Law) -> tuple[float, float]:
        """The interval of `log(σ/α)` that is used."""
        active = self.active(law)
        begin = law.times(law.start_time)
        start = -0.5 * float(law.log_snr(begin) if active is None else active.level(begin))
        low, high = math.log(self.sigma_min), min(math.log(self.sigma_max), start)
        if low >= high:
            raise ValueError(
                f"the noise level of this law starts at σ/α={math.exp(start):g}, below "
                f"sigma_min={self.sigma_min:g}"
            )
        return low, high


def time_distribution(times: TimeDistribution | str, denoiser: Denoiser) -> TimeDistribution:
    """A distribution from its name, or as it is; `"fitted"` is the one fitted to the denoiser's data."""
    if isinstance(times, TimeDistribution):
        return times
    return TimeDistribution.fitted(denoiser) if times == "fitted" else TimeDistribution(times)
