r"""DDIM: the probability flow with the data held fixed over the step, order 1 in the log of the noise level.

    u_s = α_s D + o_s + σ_s (u_t - o_t - α_t D)/σ_t

(Song, Meng, Ermon 2021, arXiv 2010.02502, eq. 12 with η = 0.) The coefficients do not depend on Γ.
"""

from __future__ import annotations

from torch import Tensor

from spatialdiff.sampling.base import Solver


class DDIM(Solver):
    """`u_s = α_s D + o_s + σ_s (u_t - o_t - α_t D)/σ_t`; order 1."""

    order = 1
    deterministic = True

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        ratio = self.law.sigma(s) / self.law.sigma(t)
        drop = self.law.alpha(s) - self.law.alpha(t) * ratio
        return ratio.to(u) * (u - self.offset(t, u)) + drop.to(u) * self.data(u, t) + self.offset(s, u)
