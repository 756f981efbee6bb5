r"""What the state of a pinned process tells about the data: I = φᵀΣ⁻¹φ and the direction Σ⁻¹φ.

Solved in the coordinates ``T u`` of ``pinned_moments``, whose covariance is well conditioned up to both ends:
with ``L' L'ᵀ`` that covariance, :math:`I = \lvert L'^{-1} T\varphi \rvert^2` and
:math:`\Sigma^{-1}\varphi = T^\top L'^{-\top} L'^{-1} T\varphi`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spatialdiff.processes.marginals import NOTHING
from spatialdiff.processes.pinned_moments import PinnedMoments, eye_like


@dataclass(frozen=True)
class Coefficients:
    """What the law is made of at times ``t``; the fields of ``moments`` are in the coordinates ``T u``."""

    moments: PinnedMoments
    phi: Tensor  # T φ, (…, K, 1)

    @cached_property
    def singular(self) -> Tensor:
        """Where the covariance of the state is singular: at an end, or at a fixed start."""
        return (self.moments.inner.diagonal(dim1=-2, dim2=-1) <= 0).any(-1)[..., None, None]

    @cached_property
    def inner(self) -> Tensor:
        return torch.where(self.singular, eye_like(self.moments.inner), self.moments.inner)

    @cached_property
    def _whitened(self) -> tuple[Tensor, Tensor, Tensor]:
        """``L'⁻¹ T φ/s`` ``(…, K, 1)``, its length and s ``(…)``, all 0 where the state says nothing or all.

        Scaled, since the square of φ itself may vanish in float64.
        """
        top = self.phi.detach().abs().amax((-2, -1), keepdim=True)
        none = self.singular | (top == 0.0)
        scaled = self.phi / torch.where(none, 1.0, top)
        solved = torch.where(none, 0.0, torch.linalg.solve_triangular(self.inner, scaled, upper=False))
        square = solved.square().sum((-2, -1))
        known = ~none[..., 0, 0].expand_as(square)
        length = torch.where(known, torch.where(known, square, 1.0).sqrt(), 0.0)
        return solved, length, torch.where(known, top[..., 0, 0].expand_as(square), 0.0)

    @cached_property
    def log_information(self) -> Tensor:
        """log I, at least ``NOTHING``."""
        _, length, top = self._whitened
        known = length > 0
        level = 2.0 * (torch.where(known, length, 1.0).log() + torch.where(known, top, 1.0).log())
        return torch.where(known, level, NOTHING).clamp(min=NOTHING)

    @cached_property
    def information(self) -> Tensor:
        """``I = |L'⁻¹ T φ|²``; 0 where the state says nothing or everything."""
        _, length, top = self._whitened
        return (length * top).square()

    @cached_property
    def weights(self) -> Tensor:
        """``Σ⁻¹φ/√I`` ``(…, K)``; of unit noise where the state says nothing, 0 where it is known."""
        solved, length, _ = self._whitened
        known = (length > 0)[..., None, None]
        first = torch.where(self.singular, 0.0, eye_like(self.inner)[:, :1])
        unit = torch.where(known, solved / torch.where(known, length[..., None, None], 1.0), first)
        pull = torch.linalg.solve_triangular(self.inner.mT, unit, upper=True)
        back: Tensor = self.moments.carry.mT @ pull
        return back[..., 0]

    @cached_property
    def precision(self) -> Tensor:
        whitening: Tensor = torch.linalg.solve_triangular(self.inner, self.moments.carry, upper=False)
        return whitening.mT @ whitening

    @cached_property
    def root(self) -> Tensor:
        return self.moments.root()
