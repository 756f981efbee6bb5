r"""Exact posterior steps with the posterior mean in place of the data: order 1 in law.

    u_s = A u_t + b ⊗ D(u_t, t) + V^{1/2} η,      (A, b, V) of u_s | u_t, x ~ N(A u_t + b ⊗ x, V ⊗ Γ)

For a noise process this is the ancestral sampler of Ho et al. 2020 (arXiv 2006.11239, eq. 6–7), for a bridge
the exact bridge step towards the predicted endpoint (Peluchetti, arXiv 2312.14589); exact in one step where
the data are a single field.
"""

from __future__ import annotations

from torch import Tensor

from spatialdiff.sampling.base import Solver, noise_root


class Ancestral(Solver):
    """`u_s = A u_t + b ⊗ D + V^{1/2} η`; order 1."""

    order = 1

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        keep, pull, variance = self.law.posterior(t, s)
        mean = self.mix(keep, u) + self.spread(pull, self.data(u, t))
        return mean + self.mix(noise_root(variance), self.noise())
