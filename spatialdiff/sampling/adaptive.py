r"""The probability flow by an adaptive integrator, in a regular variable.

For K = 1 along the angle of `heun`, `dv/dθ = w`, regular from noise to data. For K > 1, or where the law
differs from mode to mode, along `ℓ = log r`, r the time that is left to the data: `du/dℓ = ± r f(u, D, t)`,
whose rates are of order 1 where those of `f` grow like 1/r. `scipy.integrate.solve_ivp` chooses the steps;
the times of the grid only say where the flow ends (their last but one: from there the posterior mean) and
which states a path shows.

All fields of a batch share one sequence of steps, whose error norm is the root mean square over all values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.sampling.base import Noise
from spatialdiff.sampling.heun import Heun

ORDERS = {"RK23": 3, "RK45": 5, "DOP853": 8}


class Adaptive(Heun):
    """`scipy.integrate.solve_ivp` to the tolerances `rtol` and `atol`; order of its `method`, 5 for RK45.

    Args:
        rtol, atol: of the integrator, relative to the state in units of Γ. method: of `solve_ivp`.
        report: a mapping that receives `"evaluations"`, the number of network calls.

    Attributes:
        evaluations: network calls so far.

    Raises ``RuntimeError`` where the integrator gives up. Not differentiable.
    """

    order = 5

    def __init__(
        self,
        denoiser: PosteriorMean,
        noise: Noise,
        condition: Mapping[str, Any],
        *,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        method: Literal["RK23", "RK45", "DOP853"] = "RK45",
        report: MutableMapping[str, int] | None = None,
    ) -> None:
        super().__init__(denoiser, noise, condition)
        if method not in ORDERS:
            raise ValueError(f"method={method!r}; the choices are {', '.join(ORDERS)}")
        if not (rtol > 0.0 and atol > 0.0):
            raise ValueError(f"rtol={rtol:g}, atol={atol:g}; both must be positive")
        self.rtol, self.atol, self.method, self.report = rtol, atol, method, report
        self.order = ORDERS[method]
        self.evaluations = 0

    def data(self, u: Tensor, t: Tensor) -> Tensor:
        self.evaluations += 1
        return super().data(u, t)

    @torch.no_grad()
    def path(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        self.evaluations = 0
        for state in self.flow(times[:-1], u):
            u = state
            yield state
        yield self.finish(u, times[-2], times[-1])
        if self.report is not None:
            self.report["evaluations"] = self.evaluations

    def flow(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        """The states at `times[1:]`."""
        from scipy.integrate import solve_ivp

        if len(times) < 2:
            return
        along = self.coordinate(times).double()
        shape = u.shape
        steps = [(along[i], along[i + 1], times[i + 1]) for i in range(len(times) - 1)]
        flat = self.inwards(u, times[0]).double().cpu().reshape(-1)
        first: float | None = None

        def rates(at: float, value: Any) -> Any:
            state = torch.as_tensor(value).reshape(shape).to(u)
            slope = self.rates(state, torch.tensor(at, dtype=torch.float64, device=u.device))
            return slope.double().cpu().reshape(-1).numpy()

        for begin, stop, t in steps:
            span = (float(begin), float(stop))
            limit = None if first is None else min(first, abs(span[1] - span[0]))
            found = solve_ivp(
                rates,
                span,
                flat.numpy(),
                method=self.method,
                rtol=self.rtol,
                atol=self.atol,
                first_step=limit,
            )
            if not found.success:
                raise RuntimeError(
                    f"the integrator stopped between {span[0]:.4g} and {span[1]:.4g}: {found.message}"
                )
            flat = torch.as_tensor(found.y[:, -1])
            # the step that was in use, so that a grid of many times costs little
            first = max(
                abs(found.t[-1] - found.t[-2]), 0.0 if len(found.t) < 3 else abs(found.t[-2] - found.t[-3])
            )
            yield self.outwards(flat.reshape(shape).to(u), t)

    # -- the regular variable -------------------------------------------------------------------------------

    @property
    def angular(self) -> bool:
        """Whether the angle serves: one variable, alike in every mode."""
        return self.law.variables == 1 and self.law.basis is None

    def coordinate(self, times: Tensor) -> Tensor:
        """`θ`, or `ℓ`, at `times`."""
        if self.angular:
            return self.polar(times)[1]
        return (times - self.law.end_time).abs().log()

    def time(self, at: Tensor) -> Tensor:
        """The time at which the coordinate has the value `at`."""
        if self.angular:
            level = 2.0 * (at.cos().log() - at.sin().log())
            return self.law.time_of_log_snr(level)
        sign = 1.0 if self.law.start_time > self.law.end_time else -1.0
        return (self.law.end_time + sign * at.exp()).clamp(0.0, self.law.horizon)

    def inwards(self, u: Tensor, t: Tensor) -> Tensor:
        """The state in the coordinates of the integrator."""
        if not self.angular:
            return u
        return self.law.scale(1.0 / self.polar(t)[0], u - self.offset(t, u))

    def outwards(self, v: Tensor, t: Tensor) -> Tensor:
        if not self.angular:
            return v
        return self.law.scale(self.polar(t)[0], v) + self.offset(t, v)

    def rates(self, v: Tensor, at: Tensor) -> Tensor:
        """`dv/dθ`, or `du/dℓ`."""
        t = self.time(at)
        u = self.outwards(v, t)
        if self.angular:
            return self.slope(u, t)
        sign = 1.0 if self.law.start_time > self.law.end_time else -1.0
        return (sign * at.exp()).to(u) * self.law.velocity(u, self.data(u, t), t)
