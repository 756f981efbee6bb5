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
#: log I below which √I, the weight of the data in the statistic, is 0 in float64; nothing is told apart there
NOTHING = -1480.0


@dataclass(frozen=True)
class Marginal:
    """Coefficients at times ``t``, all float64 with leading axes ``(*t, [modes])``.

    Args:
        phi: φ ``(…, K)``. sigma: Σ_t ``(…, K, K)``. root: its lower Cholesky factor.
        weights: Σ_t⁻¹φ/√I ``(…, K)``, which stays of its size where φ fades away; 0 where I is infinite.
        log_information: log I, at least ``NOTHING``; infinite where the state holds the data itself.
    """

    phi: Tensor
    sigma: Tensor
    root: Tensor
    weights: Tensor
    log_information: Tensor

    @cached_property
    def at_data(self) -> Tensor:
        """Where the state holds the data itself."""
        return torch.isinf(self.log_information)

    @cached_property
    def _safe(self) -> Tensor:
        return torch.where(self.at_data, 0.0, self.log_information)

    @cached_property
    def information(self) -> Tensor:
        """I."""
        return torch.where(self.at_data, torch.inf, self._safe.exp())

    @cached_property
    def alpha(self) -> Tensor:
        """``√(I/(1 + I))``."""
        scaled = (0.5 * self._safe).exp() * (1.0 + self._safe.exp()).rsqrt()
        return torch.where(self.at_data, 1.0, scaled)

    @cached_property
    def sigma_bar(self) -> Tensor:
        """``1/√(1 + I)``."""
        return torch.where(self.at_data, 0.0, (1.0 + self._safe.exp()).rsqrt())

    @cached_property
    def statistic(self) -> Tensor:
        """``q = Σ⁻¹φ/√(I(1 + I))``; the data variable itself where it is the data."""
        scaled = self.weights * self.sigma_bar[..., None]
        return torch.where(self.at_data[..., None], self._first, scaled)

    @cached_property
    def noise_weights(self) -> Tensor:
        """``Lᵀq/σ = LᵀΣ⁻¹φ/√I``, of unit length."""
        along = (self.root.mT @ self.weights[..., None])[..., 0]
        return torch.where(self.at_data[..., None], self._first, along)

    def log_rate(self, diffusion: Tensor) -> Tensor:
        """``d log I`` per unit of time for the noise ``diffusion`` ``(…, K, K)``: ``-φᵀΣ⁻¹ G Σ⁻¹φ/I``."""
        weights = self.weights[..., None]
        speed = (weights.mT @ diffusion @ weights)[..., 0, 0]
        return -torch.where(self.log_information > NOTHING, speed, 0.0)

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
    # by the direction of φ: its square is 0 in float64 long before it is
    top = phi.detach().abs().amax(-1)
    faded = top == 0.0
    scaled = torch.where(faded[..., None], eye[:, 0], phi / torch.where(faded, 1.0, top)[..., None])
    whitened = torch.linalg.solve_triangular(root, scaled[..., None], upper=False)
    length_of = whitened.square().sum((-2, -1)).sqrt()
    weights = torch.linalg.solve_triangular(root.mT, whitened, upper=True)[..., 0] / length_of[..., None]
    level = 2.0 * (length_of.log() + torch.where(faded, 1.0, top).log())
    level = torch.where(faded, NOTHING, level).clamp(min=NOTHING)
    if bool(short.any()):
        inside = short & ~at_data
        # only the short ones: exp(-Ab) of the others may overflow
        clipped = torch.where(inside, length, 0.0)[..., None, None]
        reverse, back = linear_moments(-drift * clipped, diffusion * clipped, eye.new_ones(()))
        carried = torch.where(inside[..., None, None], initial + back, eye)
        factor = cholesky_root(carried)
        unit = torch.linalg.solve_triangular(factor, eye[:, :1].expand(*factor.shape[:-1], 1), upper=False)
        backward = torch.linalg.solve_triangular(factor.mT, unit, upper=True)
        information = unit.square().sum((-2, -1))
        # Σ⁻¹φ = Φ⁻ᵀ N⁻¹ e_1
        near_weights = (reverse.mT @ backward)[..., 0] / information.sqrt()[..., None]
        start = psd_root(initial) if initial.requires_grad else lower(psd_root(initial))
        near_root = torch.where(
            at_data[..., None, None],
            start.expand_as(factor),
            lower(forward @ torch.where(short[..., None, None], factor, eye)),
        )
        root = torch.where(short[..., None, None], near_root, root)
        near_weights = torch.where(at_data[..., None], 0.0, near_weights)
        weights = torch.where(short[..., None], near_weights, weights)
        near = torch.where(at_data, torch.inf, information.log())
        level = torch.where(short, near, level)
    unreached = (root.detach().diagonal(dim1=-2, dim2=-1) <= 0.0).any(-1) & ~at_data
    if bool(unreached.any()):
        raise ValueError(SINGULAR)
    return Marginal(phi, sigma, root, weights, level)


def weighted_mean(values: Tensor, basis: Basis | None) -> Tensor:
    """The mean over the modes, each with its multiplicity: ``(*t, [modes])`` to ``(*t)``."""
    if basis is None:
        return values
    weights = basis.weights.to(values)
    axes = tuple(range(-len(basis.modes), 0))
    return (values * weights).sum(axes) / weights.sum()
