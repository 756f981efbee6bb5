r"""The posterior of an earlier state given a later one and the data, for K variables.

.. math:: u_s \mid u_t, x \sim N\big(A u_t + b \otimes x,\; V \otimes \Gamma\big), \qquad
          A = \Sigma_s \Phi^\top \Sigma_t^{-1}, \quad b = \varphi_s - A\varphi_t, \quad
          V = (I - A\Phi)\,\Sigma_s\,(I - A\Phi)^\top + A\,\Sigma(s,t)\,A^\top.

For short times :math:`\Sigma_t` is singular to working precision (``marginals``). There the states are
carried back to time 0, where the later one is the earlier one and independent noise,

.. math:: w_t = \Phi_t^{-1} u_t = w_s + \text{noise } M, \qquad N_t = N_s + M, \qquad
          A' = N_s N_t^{-1}, \quad I - A' = M N_t^{-1},

with M and N of well conditioned correlations, and none of the differences is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.processes.marginals import SHORT, Marginal
from spatialdiff.processes.moments import cholesky_root, linear_moments


def state_posterior(
    drift: Tensor,
    diffusion: Tensor,
    initial: Tensor,
    before: Marginal,
    after: Marginal,
    b: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """A ``(…, K, K)``, b ``(…, K)`` and V ``(…, K, K)`` for ``s ≤ t``, both after 0.

    Args:
        drift, diffusion, initial: A, G and diag(0, V_0), ``([modes], K, K)``.
        before, after: the laws at s and t. b: B(s), B(t) and B(t) - B(s), ``(*t)`` each.
    """
    step, noise = linear_moments(drift, diffusion, b[2])
    gain = before.sigma @ step.mT @ after.inverse_or_zero
    kept = torch.eye(step.shape[-1], dtype=torch.float64, device=step.device) - gain @ step
    # Joseph's form: a sum of positive semi-definite terms
    spread = kept @ before.sigma @ kept.mT + gain @ noise @ gain.mT
    pull = before.phi - (gain @ after.phi[..., None])[..., 0]
    if step.shape[-1] == 1:
        return gain, pull, spread
    tail = [1] * (drift.ndim - 2)
    norm = drift.detach().abs().sum(-1).amax(-1)
    until = b[1].reshape((*b[1].shape, *tail)) * norm
    short = ((until < SHORT) & (until > 0.0)).expand(gain.shape[:-2])
    if not bool(short.any()):
        return gain, pull, spread
    near = carried_posterior(drift, diffusion, initial, b, short[..., None, None])
    there = short[..., None, None]
    return (
        torch.where(there, near[0], gain),
        torch.where(there[..., 0], near[1], pull),
        torch.where(there, near[2], spread),
    )


def carried_posterior(
    drift: Tensor, diffusion: Tensor, initial: Tensor, b: tuple[Tensor, Tensor, Tensor], short: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in the coordinates carried back to time 0, where ``short`` ``(…, 1, 1)``."""
    eye = torch.eye(drift.shape[-1], dtype=torch.float64, device=drift.device)
    one = eye.new_ones(())
    tail = [1] * drift.ndim

    # only the short ones: exp(-Ab) of the others may overflow; all four at once, the series being the cost
    lengths = torch.stack([-b[0], b[0], b[1], b[2]])
    lengths = torch.where(short, lengths.reshape((*lengths.shape, *tail)), 0.0)
    shifts, noises = linear_moments(-drift * lengths, diffusion * lengths.abs(), one)
    forward, back, home, _ = shifts.unbind(0)
    _, until, whole, step = noises.unbind(0)
    between = back @ step @ back.mT
    early, late = initial + until, initial + whole
    root = cholesky_root(torch.where(short, late, eye))
    gain = torch.cholesky_solve(early, root).mT
    kept = torch.cholesky_solve(between, root).mT
    spread = kept @ early @ kept.mT + gain @ between @ gain.mT
    return forward @ gain @ home, (forward @ kept)[..., 0], forward @ spread @ forward.mT
