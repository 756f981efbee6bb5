r"""Euler–Maruyama for the SDE that leads to the data: order 1 in law.

    u_s = u_t + b(u_t, D, t) |s - t| + √|s - t| (g(t) ⊗ R) z

with `b` the reverse-time drift of a noise process (Song et al. 2021, arXiv 2011.13456, eq. 6) or the drift of
a bridge mixture (Peluchetti, arXiv 2312.14589), `g gᵀ = Q` on the K variables. Where the SDE is singular at
its start (`Cosine`, `Rectified`: no signal is left there) it begins at the law's `sde_start_time`.
"""

from __future__ import annotations

from torch import Tensor

from spatialdiff.sampling.base import Solver


class EulerMaruyama(Solver):
    """`u_s = u_t + b |s - t| + √|s - t| (g ⊗ R) z`; order 1 in law."""

    order = 1

    @property
    def start_time(self) -> float:
        return self.law.sde_start_time

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        elapsed = (s - t).abs()
        drift = self.law.reverse_drift(u, self.data(u, t), t)
        root = self.law.noise_root(t) * elapsed.sqrt()
        return u + elapsed.to(u) * drift + self.mix(root, self.noise())
