r"""Generalised Wendland: compact support with any smoothness ``κ ≥ 0`` at the origin.

``ρ(r) = 1/B(2κ, μ+1) ∫_r^1 u (u²-r²)^{κ-1} (1-u)^μ du`` for ``r < 1``, positive definite in ``d`` dimensions
for ``μ ≥ (d+1)/2 + κ`` (Gneiting 2002; Zastavnyi 2006; Bevilacqua, Faouzi, Furrer & Porcu 2019, eq. 7). By
parts, and with ``u = r + (1-r)v``,

``ρ(r) = Γ(2κ+μ+1)/(Γ(2κ+1) Γ(μ)) (1-r)^{κ+μ} ∫_0^1 v^κ (1-v)^{μ-1} (2r + (1-r)v)^κ dv``,

which holds at ``κ = 0`` too (Askey's family) and is computed by the tanh-sinh rule; integer ``κ ≤ 3`` in
closed form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from spatialdiff.kernels.base import align
from spatialdiff.kernels.compact import CompactKernel, largest_dimension
from spatialdiff.kernels.matern import isotropic, numbers
from spatialdiff.kernels.parameters import in_parts

_NODES, _END = 161, 3.3


class GeneralizedWendland(CompactKernel):
    r"""Generalised Wendland kernel of smoothness ``κ``: Matérn's ``ν = κ + 1/2`` with compact support.

    Args:
        kappa: ``κ ≥ 0``; closed forms for 0, 1, 2, 3. A number that stays as it is, unless
            ``trainable_kappa``.
        mu: ``μ ≥ (d+1)/2 + κ``; ``κ + 2``, enough for three dimensions, where None. A parameter, ``raw_mu``.
        lengthscale: ``ℓ``, the range, one number or one per axis.
        variance: ``σ²``.
        trainable_kappa: make ``κ > 0`` a parameter, ``raw_kappa``; closed forms are not used.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: ``κ < 0``; a parameter that is not positive and finite; ``μ < κ + 1``, which is no
            covariance in any dimension; sites of more than ``2(μ - κ) - 1`` coordinates.
    """

    def __init__(
        self,
        kappa: float | Tensor = 1.0,
        mu: float | Tensor | None = None,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        trainable_kappa: bool = False,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        name = type(self).__name__
        values = torch.as_tensor(kappa, dtype=torch.float64).detach()
        if not trainable_kappa:
            if values.numel() != 1:
                raise ValueError(f"{name}: kappa of shape {tuple(values.shape)} needs trainable_kappa=True.")
            if not (values >= 0 and values < math.inf):
                raise ValueError(f"{name}: kappa must be at least 0 and finite, got {kappa!r}.")
        self._kappa = None if trainable_kappa else float(values)
        if trainable_kappa:
            self._register_positive("kappa", values)
        self._register_positive("mu", values + 2 if mu is None else mu)
        self.check_dimension(1)

    @property
    def kappa(self) -> float | Tensor:
        """``κ``: a float, or the parameter ``(*batch_shape,)`` with ``trainable_kappa``."""
        return self._positive("kappa") if self._kappa is None else self._kappa

    @property
    def trainable_kappa(self) -> bool:
        return self._kappa is None

    @property
    def mu(self) -> Tensor:
        """``μ``, shape ``(*batch,)``."""
        return self._positive("mu")

    @property
    def max_dimension(self) -> float:  # type: ignore[override]
        return math.floor(float(self._largest().min()) * (1 + 1e-12))

    def _largest(self) -> Tensor:
        return (2 * (self.mu - self.kappa) - 1).detach()

    def check_dimension(self, d: int) -> None:
        shown = numbers(torch.as_tensor(self.kappa))
        given = f"kappa = {shown}, mu = {numbers(self.mu)}"
        largest_dimension(type(self).__name__, self._largest(), "mu ≥ (d+1)/2 + kappa", d, given)

    def least_valid(self, d: int) -> dict[str, float]:
        kappa = torch.as_tensor(self.kappa)
        # of two free parameters neither has a bound of its own
        return {} if kappa.requires_grad else {"mu": (d + 1) / 2 + float(kappa.max())}

    def correlation(self, r: Tensor) -> Tensor:
        inside = r < 1
        r = torch.where(inside, r, 0.0)
        mu, kappa = align(self.mu, r), self.kappa
        if isinstance(kappa, float) and kappa in (0, 1, 2, 3):
            value = _closed(int(kappa), mu + kappa, r)
        else:
            order = align(torch.as_tensor(kappa, dtype=torch.float64, device=r.device), r.double())
            value = _integral(order, align(self.mu, r.double()), r.double()).to(r.dtype)
        return torch.where(inside, value, 0.0)

    @property
    def microergodic(self) -> Tensor:
        r"""``σ² Γ(2κ+μ+1)/Γ(μ) / ℓ^{1+2κ}``, shape ``(*batch,)``, for known ``κ``: what the high frequencies
        fix (Bevilacqua, Faouzi, Furrer & Porcu 2019, theorem 4; for ``μ`` above ``d + κ + 1/2``).
        """
        kappa = self.kappa
        constant = torch.exp(torch.lgamma(2 * kappa + self.mu + 1) - torch.lgamma(self.mu))
        return self.variance * constant / isotropic(self).pow(1 + 2 * kappa)

    def _extra(self) -> str:
        trainable = "trainable_kappa=True, " if self._kappa is None else ""
        return f"kappa={numbers(torch.as_tensor(self.kappa))}, mu={numbers(self.mu)}, {trainable}"


def _closed(kappa: int, p: Tensor, r: Tensor) -> Tensor:
    """Integer ``κ``, in ``p = μ + κ``."""
    polynomial: Tensor | float = 1.0
    if kappa == 1:
        polynomial = 1 + p * r
    elif kappa == 2:
        polynomial = 1 + r * (p + r * (p.square() - 1) / 3)
    elif kappa == 3:
        polynomial = 1 + r * (p + r * ((2 * p.square() - 3) / 5 + r * p * (p.square() - 4) / 15))
    return (1 - r).pow(p) * polynomial


@functools.lru_cache(maxsize=1)
def _tanh_sinh() -> tuple[Tensor, Tensor, Tensor]:
    """``log v``, ``log(1-v)`` and log weights of the rule on ``(0, 1)``."""
    t = torch.linspace(-_END, _END, _NODES, dtype=torch.float64)
    x = math.pi * torch.sinh(t)
    low, high = logsigmoid(x), logsigmoid(-x)
    step = 2 * _END / (_NODES - 1)
    return low, high, low + high + torch.log(step * math.pi * torch.cosh(t))


def _integral(kappa: Tensor, mu: Tensor, r: Tensor) -> Tensor:
    kappa, mu, r = torch.broadcast_tensors(kappa, mu, r)
    low, high, weight = (v.to(r.device) for v in _tanh_sinh())

    def part(kappa: Tensor, mu: Tensor, r: Tensor) -> Tensor:
        k, m, s = kappa.unsqueeze(-1), mu.unsqueeze(-1), r.unsqueeze(-1)
        exponent = k * low + (m - 1) * high + k * torch.log(2 * s + (1 - s) * low.exp()) + weight
        constant = torch.lgamma(2 * kappa + mu + 1) - torch.lgamma(2 * kappa + 1) - torch.lgamma(mu)
        return (exponent + (constant + (kappa + mu) * torch.log1p(-r)).unsqueeze(-1)).exp().sum(-1)

    flat = (v.reshape(-1) for v in (kappa, mu, r))
    return in_parts(part, 3 * _NODES, *flat).reshape(r.shape)
