"""The exact flow of a whole path at once: what its steps cost is the number of operations, not their size.

They depend on no state. Those of the last paths of a law are kept for the next one with the same times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from spatialdiff.processes import Law
from spatialdiff.processes.flow import FlowStep, flow_step, flow_steps
from spatialdiff.processes.memory import Memory, law_state, learns
from spatialdiff.sampling.base import Solver

#: the most numbers that are kept for a path (16 MiB)
KEPT = 1 << 21
_kept: Memory[FlowStep] = Memory()


class PathFlow(Solver):
    """A solver with the steps of `processes.flow`; those of a path are made when it begins.

    Attributes:
        frame: what of the residual is constant over a step, see `flow_steps`.
        flows_to_the_end: False where the last step is the posterior mean instead.
    """

    frame: ClassVar[str] = "endpoint"
    flows_to_the_end: ClassVar[bool] = False
    _steps: FlowStep | None = None
    _places: dict[tuple[float, float], int]

    def ratios(self) -> Tensor:
        """ρ of the flow."""
        return torch.zeros((), dtype=torch.float64)

    def flow_between(self, t: Tensor, s: Tensor) -> FlowStep:
        """M and W from t to s."""
        if self._steps is not None:
            place = self._places.get((t.detach().item(), s.detach().item()))
            if place is not None:
                return FlowStep(self._steps.M[place], self._steps.W[place])
        return flow_step(self.law, t, s, self.ratios(), frame=self.frame)

    def path(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        along = times if self.flows_to_the_end else times[:-1]
        try:
            if len(along) > 1:
                self._steps = kept_steps(self.law, along, self.ratios(), self.frame)
                ends = along.detach().tolist()
                self._places = {pair: i for i, pair in enumerate(itertools.pairwise(ends))}
            yield from super().path(times, u)
        finally:  # before the next path the law may learn
            self._steps = None


def kept_steps(law: Law, times: Tensor, ratio: Tensor, frame: str) -> FlowStep:
    """`flow_steps`, from memory where law, times and ρ have the values of an earlier call."""
    state = [ratio, *law_state(law, times)]
    if law.variables == 1 or learns(state):
        return flow_steps(law, times, ratio, frame=frame)
    # what was made in inference mode is of no use to autograd
    key = (frame, len(times), torch.is_inference_mode_enabled())
    found = _kept.recall(law, key, state)
    if found is None:
        found = flow_steps(law, times, ratio, frame=frame)
        if found.M.numel() <= KEPT:
            _kept.keep(law, key, state, found)
    return found
