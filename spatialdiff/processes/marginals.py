r"""The law of the state of a linear process given the data, and the statistic that is sufficient for them.

.. math:: \varphi = \Phi e_1, \qquad \Sigma_t = \Phi\, \mathrm{diag}(0, V_0)\, \Phi^\top + \Sigma, \qquad
          I = \varphi^\top \Sigma_t^{-1} \varphi.

For short times the noise of the data variable given the auxiliary ones is of a high order in b (:math:`b^5`
for ALDA), and :math:`\Sigma_t` is singular to working precision. There the noise is carried back to time 0,

.. math:: N = \mathrm{diag}(0, V_0) + \int_0^b e^{-Ar} G e^{-A^\top r} dr, \qquad
          \Sigma_t = \Phi N \Phi^\top, \qquad I = (N^{-1})_{11},

whose correlations stay well conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.moments import SINGULAR, cholesky_root, linear_moments, lower, psd_root

#: b‖A‖ below which the noise is carried back to time 0
SHORT = 0.5


@dataclass(frozen=True)
class Marginal:
    """Coefficients at times ``t``, all float64 with leading axes ``(*t, [modes])``.

    Args:
        phi: φ ``(…, K)``. sigma: Σ_t ``(…, K, K)``. root: its lower Cholesky factor.
        pull: Σ_t⁻¹φ ``(…, K)``, 0 where I is infinite. information: I; infinite where the state holds the
            data itself.
    """

    phi: Tensor
    sigma: Tensor
    root: Tensor
    pull: Tensor
    information: Tensor

    @cached_property
    def at_data(self) -> Tensor:
        """Where the state holds the data itself."""
        return torch.isinf(self.information)

    @cached_property
    def alpha(self) -> Tensor:
        """``√(I/(1 + I))``."""
        safe = torch.where(self.at_data, 1.0, self.information)
        return torch.where(self.at_data, 1.0, (safe / (1.0 + safe)).sqrt())

    @cached_property
    def sigma_bar(self) -> Tensor:
        """``1/√(1 + I)``."""
        return (1.0 + self.information).rsqrt()

    @cached_property
    def statistic(self) -> Tensor:
        """``q = Σ⁻¹φ/√(I(1 + I))``; the data variable itself where it is the data."""
        safe = torch.where(self.at_data, 1.0, self.information)
        scaled = self.pull / (safe.sqrt() * (1.0 + safe).sqrt())[..., None]
        return torch.where(self.at_data[..., None], self._first, scaled)

    @cached_property
    def noise_weights(self) -> Tensor:
        """``Lᵀq/σ = LᵀΣ⁻¹φ/√I``, of unit length."""
        safe = torch.where(self.at_data, 1.0, self.information)
        weights = (self.root.mT @ self.pull[..., None])[..., 0] / safe.sqrt()[..., None]
        return torch.where(self.at_data[..., None], self._first, weights)

    @property
    def _first(self) -> Tensor:
        first = torch.zeros_like(self.phi)
        first[..., 0] = 1.0
        return first

    @cached_property
    def inverse_or_zero(self) -> Tensor:
        """``Σ_t⁻¹``, 0 where the state holds the data itself."""
        eye = torch.eye(self.phi.shape[-1], dtype=torch.float64, device=self.phi.device)
        singular = self.at_data[..., None, None]
        safe = torch.where(singular, eye, self.root)
        inverse = torch.linalg.solve_triangular(safe, eye.expand_as(safe), upper=False)
        return torch.where(singular, 0.0, inverse.mT @ inverse)

    @property
    def inverse(self) -> Tensor:
        """``Σ_t⁻¹``; raises ``ValueError`` where the state holds the data itself."""
        if bool(self.at_data.any()):
            raise ValueError(
                "the score does not exist where sigma(t) = 0 (at the data end); evaluate it at a time inside"
            )
        return self.inverse_or_zero


def marginal_law(drift: Tensor, diffusion: Tensor, initial: Tensor, b: Tensor) -> Marginal:
    """The law at B(t) = ``b`` ``(*t)`` from A, G and diag(0, V_0), ``([modes], K, K)`` each.

    Raises ``ValueError`` where the noise does not reach every variable.
    """
    forward, sigma = linear_moments(drift, diffusion, b)
    phi = forward[..., :, 0]
    sigma = sigma + forward @ initial @ forward.mT
    tail = [1] * (drift.ndim - 2)
    length = b.double().reshape((*b.shape, *tail))
    norm = drift.detach().abs().sum(-1).amax(-1)
    here = (length * norm).expand(phi.shape[:-1])
    at_data, short = (length == 0.0).expand(phi.shape[:-1]), here < SHORT
    eye = torch.eye(drift.shape[-1], dtype=torch.float64, device=phi.device)
    long = ~short
    root = cholesky_root(torch.where(long[..., None, None], sigma, eye))
    whitened = torch.linalg.solve_triangular(root, phi[..., None], upper=False)
    pull = torch.linalg.solve_triangular(root.mT, whitened, upper=True)[..., 0]
    information = whitened.square().sum((-2, -1))
    if bool(short.any()):
        inside = short & ~at_data
        # only the short ones: exp(-Ab) of the others may overflow
        clipped = torch.where(inside, length, 0.0)[..., None, None]
        reverse, back = linear_moments(-drift * clipped, diffusion * clipped, eye.new_ones(()))
        carried = torch.where(inside[..., None, None], initial + back, eye)
        factor = cholesky_root(carried)
        unit = torch.linalg.solve_triangular(factor, eye[:, :1].expand(*factor.shape[:-1], 1), upper=False)
        backward = torch.linalg.solve_triangular(factor.mT, unit, upper=True)
        # Σ⁻¹φ = Φ⁻ᵀ N⁻¹ e_1
        near_pull = (reverse.mT @ backward)[..., 0]
        start = psd_root(initial) if initial.requires_grad else lower(psd_root(initial))
        near_root = torch.where(
            at_data[..., None, None],
            start.expand_as(factor),
            lower(forward @ torch.where(short[..., None, None], factor, eye)),
        )
        root = torch.where(short[..., None, None], near_root, root)
        pull = torch.where(short[..., None], torch.where(at_data[..., None], 0.0, near_pull), pull)
        near = torch.where(at_data, torch.inf, unit.square().sum((-2, -1)))
        information = torch.where(short, near, information)
    unreached = (root.detach().diagonal(dim1=-2, dim2=-1) <= 0.0).any(-1) & ~at_data
    if bool(unreached.any()):
        raise ValueError(SINGULAR)
    return Marginal(phi, sigma, root, pull, information)


def weighted_mean(values: Tensor, basis: Basis | None) -> Tensor:
    """The mean over the modes, each with its multiplicity: ``(*t, [modes])`` to ``(*t)``."""
    if basis is None:
        return values
    weights = basis.weights.to(values)
    axes = tuple(range(-len(basis.modes), 0))
    return (values * weights).sum(axes) / weights.sum()
