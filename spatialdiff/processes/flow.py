r"""The probability flow of Gaussian data, solved exactly for any number of variables.

With data variance ρ (in units of Γ) the state has the covariance :math:`P_t = \rho\varphi\varphi^\top +
\Sigma_t`, and the flow is linear, :math:`\dot u = V u`, :math:`\dot P = VP + PV^\top`. In the coordinates
:math:`L^{-1}u`, :math:`P = LL^\top` with L lower, it is a rotation, so that no derivative of L is needed:

.. math:: M(t \to s) = L_s\,O\,L_t^{-1}, \qquad \dot O = \Omega O, \qquad
          \Omega_{ij} = -\Omega_{ji} = (L^{-1} V L)_{ij} \quad (i < j).

For K = 1, O = 1. What a posterior mean :math:`D = m + r` adds to the Gaussian one m enters the flow as
:math:`\kappa r`, with :math:`\dot\varphi - V\varphi = \kappa/(1 + \rho I)`. With
:math:`e = (1 + \rho I)\,r` fixed over the step, the endpoint form,

.. math:: u_s = \varphi_s\mu + M\,(u_t - \varphi_t\mu) + W r_t, \qquad
          W = (1 + \rho I_t)\,(\varphi_s - M\varphi_t)
            = \int_t^s M(\tau \to s)\,\kappa_\tau\,\frac{1 + \rho I_t}{1 + \rho I_\tau}\,d\tau ,

and ρ = 0 is DDIM (Song, Meng, Ermon 2021, arXiv 2010.02502) for every K. The difference cancels where
:math:`\rho I` is large, the integral does not.

O and W are integrated in ``rotating_frame``. They are analytic in log ρ, and for many values of ρ are
interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.processes.base import Times
from spatialdiff.processes.law import Law
from spatialdiff.processes.rotating_frame import RotatingFrame

TOLERANCE = 1e-9
FRAMES = ("endpoint", "angle")
#: more values of ρ than this are interpolated from Chebyshev nodes in log ρ
MANY = 100


@dataclass(frozen=True)
class FlowStep:
    """``u_s - o_s = φ_s μ + M (u_t - o_t - φ_t μ) + W r``; M ``(…, K, K)``, W ``(…, K)``, float64."""

    M: Tensor
    W: Tensor


def flow_step(
    law: Law,
    t: Times,
    s: Times,
    ratio: Tensor | float,
    *,
    tolerance: float = TOLERANCE,
    frame: str = "endpoint",
) -> FlowStep:
    """One step of the probability flow from t towards the data at s: ``flow_steps`` for two times."""
    ends = torch.stack([law.times(t, "t"), law.times(s, "s")])
    found = flow_steps(law, ends, ratio, tolerance=tolerance, frame=frame)
    return FlowStep(found.M[0], found.W[0])


def flow_steps(
    law: Law,
    times: Tensor,
    ratio: Tensor | float,
    *,
    tolerance: float = TOLERANCE,
    frame: str = "endpoint",
) -> FlowStep:
    r"""The steps of a path of the probability flow towards the data, each exact for Gaussian data.

    Args:
        law: with K > 1 a ``NoiseProcess`` or the law of a ``LinearBridge``; any law with K = 1.
        times: ``(T,)``, each between the one before and ``law.end_time``.
        ratio: ρ, the data's variance in units of Γ, any shape; for a law with modes the modes last. The ``…``
            of the result are T - 1 and this shape (broadcast with the modes).
        tolerance: bound on the change of O and of W (relative to its size) at the last doubling, for K > 1.
        frame: what of the residual is constant over the step: ``"endpoint"`` the e above, ``"angle"``
            ``r √(1 + ρI)``, which is ``dv/dθ`` of Heun along the angle for K = 1 and ρ = 1.

    Raises:
        ValueError: an unknown frame. RuntimeError: no probability flow, or no convergence.
        TypeError: a law of several variables whose drift is not known.
    """
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r}; the choices are {', '.join(FRAMES)}")
    if not law.deterministic_flow:
        raise RuntimeError(f"{type(law).__name__} has no probability flow: its start is a point")
    places = law.times(times, "times")
    value = torch.as_tensor(ratio, dtype=torch.float64, device=places.device)
    if law.variables == 1 and frame == "endpoint":
        return scalar_steps(law, places, value)
    if law.basis is None and value.numel() > MANY and not value.requires_grad:
        return interpolated(law, places, value, tolerance, frame)
    return FlowStep(*RotatingFrame(law, value, frame).steps(places, tolerance))


def scalar_steps(law: Law, times: Tensor, ratio: Tensor) -> FlowStep:
    """The closed form for K = 1: ``M = √(P_s/P_t)``, W without its cancellation."""
    lift = RotatingFrame(law, ratio).lift
    # of the state: alpha and sigma of a law are those of its statistic, which may be scaled
    signal, noise = law.marginal(times)
    alpha, variance = lift(signal[..., 0]), lift(noise[..., 0, 0])
    sigma = variance.sqrt()
    power = alpha.square() * ratio + variance
    now, then = alpha[:-1], alpha[1:]
    growth = (power[1:] / power[:-1]).sqrt()
    kept = now * sigma[1:] / sigma[:-1]
    total = then + now * growth
    # where a mode has faded away on both sides there is nothing to add
    faded = total == 0.0
    weight = torch.where(faded, 0.0, (then - kept) * (then + kept) / torch.where(faded, 1.0, total))
    return FlowStep(growth[..., None, None], weight.expand_as(growth)[..., None])


def interpolated(law: Law, times: Tensor, ratio: Tensor, tolerance: float, frame: str) -> FlowStep:
    """The steps for many ρ, from their values at Chebyshev nodes in log ρ.

    The nearest singularities are at ``1 + ρI = 0``, π away from the real axis, so that some 3.6 nodes per
    e-folding of ρ leave an error of 1e-10. Where five values in between differ by more than ten times
    ``tolerance``, all are computed.
    """
    values, inverse = ratio.reshape(-1).unique(return_inverse=True)
    positive = values[values > 0]
    ends = positive.log()[[0, -1]] if len(positive) else values.new_zeros(2)
    count = 24 + int(3.6 * float(ends[1] - ends[0]))
    small = len(values) <= max(count, MANY)
    if not small:
        angles = torch.arange(count, dtype=torch.float64, device=values.device) * (torch.pi / (count - 1))
        nodes = 0.5 * (ends[0] + ends[1]) - 0.5 * (ends[1] - ends[0]) * angles.cos()
        checks = positive[torch.linspace(0, len(positive) - 1, 7).long()[1:-1]]
        asked = torch.cat([nodes.exp(), checks, values.new_zeros(1)])
        found = flat(*RotatingFrame(law, asked, frame).steps(times, tolerance))
        weights = torch.ones(count, dtype=torch.float64, device=values.device)
        weights[1::2] = -1.0
        weights[[0, -1]] *= 0.5
        targets = torch.cat([positive, checks]).log()
        away = targets[:, None] - nodes
        hit = away == 0
        shares = weights / torch.where(hit, 1.0, away)
        shares = torch.where(hit.any(-1, keepdim=True), hit.to(shares), shares)
        between = (shares / shares.sum(-1, keepdim=True)) @ found[:, :count]
        known = found[:, count : count + len(checks)]
        if float((between[:, len(positive) :] - known).abs().max()) <= 10.0 * tolerance:
            zeros = found[:, -1:].expand(-1, len(values) - len(positive), -1)
            both = torch.cat([zeros, between[:, : len(positive)]], dim=1)
            return unflat(both[:, inverse], ratio, law.variables)
    full = flat(*RotatingFrame(law, values, frame).steps(times, tolerance))
    return unflat(full[:, inverse], ratio, law.variables)


def flat(M: Tensor, W: Tensor) -> Tensor:
    """M and W in one, ``(T, N, K² + K)``."""
    return torch.cat([M.flatten(-2), W], dim=-1)


def unflat(both: Tensor, ratio: Tensor, variables: int) -> FlowStep:
    """The inverse of ``flat``, with the shape of ρ."""
    square = variables**2
    M = both[..., :square].reshape(-1, *ratio.shape, variables, variables)
    return FlowStep(M, both[..., square:].reshape(-1, *ratio.shape, variables))
