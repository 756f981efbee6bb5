r"""Levels of log-SNR of a law whose modes turn from noise to data at different times.

For coefficients per mode the mean of :math:`\lambda_k = \log I_k` says little: where it is low the slowest
mode may still tell much, and where it is high the fastest may tell nothing; and a mode that is alone in
turning hardly moves it. Here each mode counts while it is neither noise nor data, and the one that turns
fastest sets the pace,

.. math:: \tilde\lambda(t) = \lambda_0 + (\lambda_+ - \lambda_0)\,\frac{s(t)}{s(\text{end})}, \qquad
          ds = \max_k\, \lvert d\min(\max(\lambda_k, \lambda_-), \lambda_+) \rvert,

from :math:`\lambda_0`, the level of the most informed mode at the start, but not below :math:`\lambda_-`, to
:math:`\lambda_+`, where all modes are data: :math:`\lambda` itself where all modes are alike. A table of it,
linear between its nodes, is the level: so its inverse and its rate are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from spatialdiff.processes.law import Law
from spatialdiff.processes.memory import Memory, law_state

#: nodes of the search for the ends of the table, and of the table
COARSE, NODES = 161, 257
HALVINGS = 24
#: the search runs over |log δ/(1 - δ)| up to this, δ the share of the way from the data
WIDEST = 40.0
#: share of the range that rises evenly in log δ/(1 - δ), so that the level never stands still
TILT = 1e-3


class ActiveLevels:
    """The level of a law between ``low`` and ``high``, its inverse and its rate.

    Args:
        law: of coefficients per mode. low, high: log I below and above which a mode does not count.
    """

    def __init__(self, law: Law, low: float, high: float) -> None:
        self.end, self.span = law.end_time, law.start_time - law.end_time
        self.horizon = law.horizon
        self.low, self.high = low, high
        device = law.covariance.device
        places = torch.linspace(WIDEST, -WIDEST, COARSE, dtype=torch.float64, device=device)
        slack = 1e-9 * (high - low)
        with torch.no_grad():
            ends = [(level.max(), level.min()) for level in clipped(law, self.time_at(places), low, high)]
            most, least = (torch.stack(part) for part in zip(*ends, strict=True))
            noise = int((most <= low + slack).sum().clamp(min=1, max=COARSE - 1)) - 1
            data = int((least < high - slack).sum().clamp(min=noise + 1, max=COARSE - 1))
            # an end beyond which no mode counts is met closely: nothing is drawn there, and much may be told
            first, last = places[noise], places[data]
            if bool(most[noise] <= low + slack):
                first = self.edge(law, first, places[noise + 1], lambda level: level.max() <= low + slack)
            if bool(least[data] >= high - slack):
                last = self.edge(law, last, places[data - 1], lambda level: level.min() >= high - slack)
            self.places = torch.linspace(float(first), float(last), NODES, dtype=torch.float64, device=device)
            begin, before, steps = low, None, []
            for level in clipped(law, self.time_at(self.places), low, high):
                if before is None:
                    begin = float(level.max())
                else:
                    steps.append((level - before).max().clamp(min=0.0))
                before = level
            even = torch.linspace(0.0, 1.0, NODES, dtype=torch.float64, device=device)
            pace = torch.stack(steps).cumsum(0)
            pace = torch.cat([pace.new_zeros(1), pace / pace[-1].clamp(min=1e-300)])
            self.levels = begin + (high - begin) * ((1.0 - TILT) * pace + TILT * even)

    def edge(self, law: Law, out: Tensor, inside: Tensor, beyond: Callable[[Tensor], Tensor]) -> Tensor:
        """The place between ``out`` and ``inside`` at which the modes begin to be ``beyond``."""
        for _ in range(HALVINGS):
            middle = 0.5 * (out + inside)
            level = next(clipped(law, self.time_at(middle[None]), self.low, self.high))
            out, inside = (middle, inside) if bool(beyond(level)) else (out, middle)
        return out

    def time_at(self, place: Tensor) -> Tensor:
        """``δ = 1/(1 + e^{-ℓ})`` of the way from the data, as a time."""
        return (self.end + self.span * torch.sigmoid(place)).clamp(0.0, self.horizon)

    def place_of(self, t: Tensor) -> Tensor:
        share = ((t - self.end) / self.span).clamp(0.0, 1.0)
        return (share.log() - (-share).log1p()).clamp(-WIDEST, WIDEST)

    def level(self, t: Tensor) -> Tensor:
        """The level at times ``t``, shape kept; the ends of the table outside of it."""
        place = self.place_of(t).flatten()
        # places fall from the noise to the data
        index = torch.searchsorted(-self.places, -place.contiguous()).clamp(1, NODES - 1)
        near, far = self.places[index], self.places[index - 1]
        share = ((far - place) / (far - near)).clamp(0.0, 1.0)
        found = self.levels[index - 1] + share * (self.levels[index] - self.levels[index - 1])
        return found.reshape(t.shape)

    def rate(self, t: Tensor) -> Tensor:
        """The absolute derivative of the level in t, shape kept; 0 outside of the table."""
        place = self.place_of(t).flatten()
        index = torch.searchsorted(-self.places, -place.contiguous()).clamp(1, NODES - 1)
        near, far = self.places[index], self.places[index - 1]
        slope = (self.levels[index] - self.levels[index - 1]) / (far - near)
        inside = (place <= self.places[0]) & (place >= self.places[-1])
        share = torch.sigmoid(place)
        speed = slope / (abs(self.span) * share * (1.0 - share))
        return torch.where(inside, speed, 0.0).reshape(t.shape)

    def time(self, level: Tensor) -> Tensor:
        """The times of the levels, shape kept; the ends of the table outside of it."""
        flat = level.to(self.levels).flatten()
        index = torch.searchsorted(self.levels, flat.contiguous()).clamp(1, NODES - 1)
        below, above = self.levels[index - 1], self.levels[index]
        share = ((flat - below) / (above - below)).clamp(0.0, 1.0)
        place = self.places[index - 1] + share * (self.places[index] - self.places[index - 1])
        return self.time_at(place).reshape(level.shape)


def clipped(law: Law, times: Tensor, low: float, high: float) -> Iterator[Tensor]:
    """``min(max(λ_k, low), high)`` ``(*modes)`` at each of the times ``(T,)``."""
    # a few at once: all modes of a large field at all times are many
    for part in times.split(16):
        level = law.information(part).log().nan_to_num(low, high, low).clamp(low, high)
        yield from level.unbind(0)


_kept: Memory[ActiveLevels] = Memory()


def active_levels(law: Law, low: float, high: float) -> ActiveLevels:
    """The levels of a law with modes; made once for the same values of the law."""
    places = torch.linspace(
        law.start_time, law.end_time, 9, dtype=torch.float64, device=law.covariance.device
    )
    with torch.no_grad():
        state = law_state(law, places)
    key = (low, high)
    found = _kept.recall(law, key, state)
    if found is None:
        found = ActiveLevels(law, low, high)
        _kept.keep(law, key, state, found)
    return found
