r"""Integration of the probability flow, in the frame that turns with it.

Where the state has forgotten the data, and has the stationary law N(0, S ⊗ Γ), the flow of a process with
auxiliary variables does not stop: it turns, `du/dt = β W u` with `W = A + ½ G S⁻¹`, which keeps S and has no
trace. In the frame `z = exp(-W B(t)) u` it does stop, and no steps are spent on turning.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.likelihood.field import FlowField
from spatialdiff.processes import Law, LinearDiffusion


class Frame:
    """`z = exp(-W B(t)) u`; the identity for K = 1 and for processes without a stationary law."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.process: LinearDiffusion | None = None
        if isinstance(law, LinearDiffusion) and law.variables > 1 and law.stationary is not None:
            self.process = law
            t = torch.tensor(0.5 * law.horizon, dtype=torch.float64, device=law.covariance.device)
            noise = torch.linalg.solve(law.stationary, law.diffusion_matrix(t), left=False)
            self.turning = (law.drift_matrix(t) + 0.5 * noise) / law.schedule.rate(t)

    def enter(self, u: Tensor, t: Tensor) -> Tensor:
        """u `(B, K*C, *grid)` in the frame."""
        return self.turned(u, t, -1.0)

    def leave(self, z: Tensor, t: Tensor) -> Tensor:
        """The state of coordinates z."""
        return self.turned(z, t, 1.0)

    def turned(self, u: Tensor, t: Tensor, sign: float) -> Tensor:
        if self.process is None:
            return u
        angle = sign * self.process.schedule.integral(t)
        return self.process.mix(torch.linalg.matrix_exp(angle * self.turning), u)

    def velocity(self, u: Tensor, t: Tensor) -> Tensor:
        """`β W u`, that of a point at rest in the frame."""
        if self.process is None:
            return torch.zeros_like(u)
        return self.process.mix(self.process.schedule.rate(t) * self.turning, u)


def integrate(
    flow: FlowField, state: Tensor, near: Tensor, far: Tensor, rtol: float, atol: float
) -> tuple[Tensor, Tensor, int]:
    """The states at `far`, `∫ ∇·v dt` from `near` `(B,)`, and the number of evaluations.

    Raises:
        RuntimeError: the integrator gave up.
    """
    from scipy.integrate import solve_ivp

    end, sites_ = flow.law.end_time, flow.size
    shape = state.shape
    sign = 1.0 if float(far) > end else -1.0
    low, high = (float(torch.log((t - end).abs())) for t in (near, far))
    count = state.numel()

    frame = Frame(flow.law)

    def time(s: float) -> Tensor:
        distance = math.exp(min(max(s, low), high))
        return torch.tensor(end + sign * distance, dtype=torch.float64, device=state.device)

    def derivative(s: float, vector: Any) -> Any:
        t = time(s)
        turned = torch.as_tensor(vector[:count], dtype=torch.float64, device=state.device).reshape(shape)
        u = frame.leave(turned, t)
        velocity, divergence = flow(u.to(state.dtype), t)
        moved = frame.enter(velocity.double() - frame.velocity(u, t), t)
        rates = torch.cat([moved.flatten(), divergence.double() / sites_])
        return ((t - end) * rates).cpu().numpy()

    first = frame.enter(state.double(), near)
    begin = np.concatenate([first.flatten().cpu().numpy(), np.zeros(len(state))])
    result = solve_ivp(derivative, (low, high), begin, method="DOP853", rtol=rtol, atol=atol)
    if not result.success:
        raise RuntimeError(
            f"the probability flow could not be integrated to rtol={rtol:g}, atol={atol:g}: "
            f"{result.message}; loosen the tolerances, or begin at a larger t0"
        )
    final = torch.as_tensor(result.y[:, -1], dtype=torch.float64, device=state.device)
    last = frame.leave(final[:count].reshape(shape), far)
    return last.to(state), final[count:] * sites_, int(result.nfev)
