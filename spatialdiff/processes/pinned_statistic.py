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
    def whitened(self) -> Tensor:
        """``L'⁻¹ T φ`` ``(…, K, 1)``, whose square is I; 0 where the state says nothing or everything."""
        solved = torch.linalg.solve_triangular(self.inner, self.phi, upper=False)
        return torch.where(self.singular, 0.0, solved)

    @cached_property
    def information(self) -> Tensor:
        return self.whitened.square().sum((-2, -1))

    @cached_property
    def weights(self) -> Tensor:
        """``Σ⁻¹φ/√I`` ``(…, K)``, not at all where I = 0."""
        known = self.information > 0
        unit = self.whitened / torch.where(known, self.information, 1.0).sqrt()[..., None, None]
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
