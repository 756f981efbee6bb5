r"""Euler for the probability flow in the time of the process: order 1.

    u_s = u_t + (s - t) f(u_t, D, t)

with the velocity `f` of the law: `F u - ½ Q Γ∇log q` for a noise process (Song et al. 2021, arXiv 2011.13456,
eq. 13), for K = 1 `α̇ D + ȯ + σ̇ (u - o - α D)/σ`. For `Rectified` these are the straight
steps of flow matching (Lipman et al. 2022, arXiv 2210.02747); where `σ ~ √t` near the data, `DDIM` is the
better first-order step.
"""

from __future__ import annotations

from torch import Tensor

from spatialdiff.sampling.base import Solver


class Euler(Solver):
    """`u_s = u_t + (s - t) f(u_t, D, t)`; order 1."""

    order = 1
    deterministic = True

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return u + (s - t).to(u) * self.law.velocity(u, self.data(u, t), t)
