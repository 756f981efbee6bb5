r"""Vecchia's approximate likelihood, its score and its expected information, in one pass over the sites.

Each site is given its neighbours, ``ℓ = Σ_i log p(x_i | x_N(i))``. With ``A = L Lᵀ`` the covariance of ``(N,
i)``, the site last, ``w = L⁻ᵀ e_p``, ``z = L⁻¹ x`` and ``s_k = L⁻¹ ∂A_k w``, a block adds

``log det: 2 log L_pp``, ``∂_k: s_kp``; ``xᵀΓ⁻¹x: z_p²``, ``∂_k: -2 z_p (s_k·z - ½ s_kp z_p)``;
``information: s_k·s_l - ½ s_kp s_lp``

(Guinness 2021, section 3: the difference of a block and the block without its last site, of which only the
last row is needed). The mean is profiled out and restriction is as in `dense`. With ``m ≥ n - 1`` neighbours
all of it is exact.

Sources: Vecchia 1988; Guinness 2021, "Gaussian process learning via Fisher scoring of Vecchia's
approximation", Statistics and Computing 31.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spatialdiff.covariance.points.conditionals import as_isotropic
from spatialdiff.covariance.points.triangular import shared
from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.structured import StructuredLikelihood
from spatialdiff.fitting.likelihoods.vecchia_information import vecchia_information
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters

_PAIRS = 2000


@dataclass(frozen=True)
class _Evaluated:
    """Everything at one θ."""

    value: Tensor
    slope: Tensor
    information: Tensor
    gram: Tensor
    cross: Tensor


class VecchiaLikelihood(Likelihood):
    """Vecchia's likelihood of replicated fields.

    Order and neighbours are fixed when it is made, in the metric of the kernel's start. Kernels of one
    isotropic term in closed form (Matérn 1/2, 3/2, 5/2 and Gaussian, with length scales per axis or rotated,
    and nuggets) go through compiled loops where numba is installed.

    Args:
        model: the kernel.
        data: fields observed at the same sites.
        restricted: the likelihood of the contrasts that are free of the mean.
        neighbors: ``m``.
        ordering, engine: as in `VecchiaCovariance`.

    Raises:
        ValueError: missing values that differ between fields; what `VecchiaCovariance` refuses.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        *,
        restricted: bool = False,
        neighbors: int = 30,
        ordering: str | Tensor = "maximin",
        engine: str = "auto",
    ) -> None:
        self.model, self.data, self.restricted = model, data, restricted
        options: dict[str, Any] = {"neighbors": neighbors, "ordering": ordering, "engine": engine}
        self._plain = StructuredLikelihood(model, data, "vecchia", restricted, **options)
        gamma = self._plain.gamma
        assert isinstance(gamma, VecchiaCovariance)
        self.gamma = gamma
        self._closed = _Closed(model.kernel, data.domain.dimension)
        self.compiled = gamma.pattern.compiled and self._closed.exists()
        flat = data.flat()[..., gamma.order]
        vectors = flat.flatten(0, 1).T
        columns = torch.zeros(len(vectors), 0).double() if data.design is None else data.design[gamma.order]
        self._q = columns.shape[1]
        self._columns = torch.cat((vectors, columns, flat.mean(dim=0).T), dim=1).contiguous()
        self._vectors = vectors.shape[1]
        self._seen: tuple[Tensor, _Evaluated] | None = None

    # ---- the compiled way
    def _evaluate(self, theta: Tensor) -> _Evaluated:
        """Value, score and information at ``theta``, from one pass, kept for the next question."""
        if self._seen is not None and torch.equal(self._seen[0], theta):
            return self._seen[1]
        from spatialdiff.covariance.points.vecchia_compiled import LANES
        from spatialdiff.fitting.likelihoods import vecchia_scores_compiled as loops

        data, q, channels = self.data, self._q, self.data.channels
        closed = self._closed.at(self.model, theta)
        sites = (self.gamma.sites @ closed.transform.T).contiguous().numpy()
        number, extra = len(theta), q + channels
        size = 2 + extra * extra
        rows = size * (1 + number) + number * number
        function = functools.partial(_collect, loops.isotropic_scores, (rows, LANES))
        parts = shared(
            function,
            len(sites),
            sites,
            self.gamma.neighbours.numpy(),
            closed.variance,
            closed.nugget,
            closed.family,
            closed.of_variance.numpy(),
            closed.of_nugget.numpy(),
            closed.of_metric.numpy(),
            self._columns.numpy(),
            self._vectors,
        )
        total = torch.from_numpy(sum(parts))
        if not bool(torch.isfinite(total).all()):
            raise NotPositiveDefiniteError
        sums, lower = total[: size * (1 + number)].reshape(1 + number, size), total[size * (1 + number) :]
        half = lower.reshape(number, number)
        information = half + half.tril(-1).T
        replicates = data.count * channels
        information = replicates * information
        constant = replicates * data.domain.size * math.log(2.0 * math.pi)
        value = -0.5 * (constant + replicates * sums[0, 0] + sums[0, 1])
        slope = -0.5 * (replicates * sums[1:, 0] + sums[1:, 1])
        products = sums[:, 2:].reshape(1 + number, extra, extra)
        gram, cross = products[:, :q, :q], products[:, :q, q:]
        if q:
            inverse, info = torch.linalg.inv_ex(gram[0])
            if int(info):
                raise NotPositiveDefiniteError
            beta = inverse @ cross[0]
            value = value + 0.5 * data.total * (cross[0] * beta).sum()
            change = 2.0 * (cross[1:] * beta).sum(dim=(1, 2)) - (beta * (gram[1:] @ beta)).sum(dim=(1, 2))
            slope = slope + 0.5 * data.total * change
            if self.restricted:
                design = self._columns[:, self._vectors : self._vectors + q]
                ratio = torch.logdet(gram[0]) - torch.logdet(design.T @ design)
                value = value + 0.5 * channels * (q * math.log(2.0 * math.pi) - ratio)
                slope = slope - 0.5 * channels * torch.einsum("ab,kba->k", inverse, gram[1:])
        found = _Evaluated(value, slope, information, gram[0], cross[0])
        self._seen = (theta.clone(), found)
        return found

    def __call__(self, theta: Tensor) -> Tensor:
        if not self.compiled:
            return self._plain(theta)
        value: Tensor = _Value.apply(theta, self)
        return value

    def information(self, theta: Tensor) -> Tensor:
        if not self.compiled:
            return vecchia_information(self._plain, theta) * (self.data.count * self.data.channels)
        return self._evaluate(theta.detach()).information

    def coefficients(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None or not self.compiled:
            return self._plain.coefficients(theta)
        found = self._evaluate(theta.detach())
        solved: Tensor = torch.linalg.solve(found.gram, found.cross)
        return solved.T

    def coefficient_covariance(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None or not self.compiled:
            return self._plain.coefficient_covariance(theta)
        inverse: Tensor = torch.linalg.inv(self._evaluate(theta.detach()).gram)
        return inverse / self.data.total

    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        """Of all pairs of sites, or of those of 2000 sites drawn at random (fixed seed)."""
        sites = self.data.domain.sites()
        n = len(sites)
        if n > _PAIRS:
            chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_PAIRS]
            sites = sites[chosen]
        with torch.no_grad():
            matrix = self.model.matrix(theta, sites)
        diagonal = float(matrix.diagonal().mean())
        if n <= _PAIRS:
            return float(matrix.mean()), diagonal
        between = (float(matrix.sum()) - float(matrix.diagonal().sum())) / (_PAIRS * (_PAIRS - 1))
        return between + (diagonal - between) / n, diagonal


class _Value(torch.autograd.Function):
    """The value, with the slope that came with it."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, likelihood: VecchiaLikelihood) -> Tensor:
        found = likelihood._evaluate(theta.detach())
        ctx.save_for_backward(found.slope)
        return found.value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


@dataclass(frozen=True)
class _ClosedAt:
    """A closed form at θ and its derivatives: of variance and nugget ``(p,)``, and of the squared distance in
    scaled coordinates ``uᵀ(I + Σ_k dθ_k M_k)u`` ``(p, d, d)``."""

    family: int
    variance: float
    nugget: float
    transform: Tensor
    of_variance: Tensor
    of_nugget: Tensor
    of_metric: Tensor


class _Closed(nn.Module):
    """Variance, nugget and transform of an isotropic closed form as functions of the raw parameters."""

    def __init__(self, kernel: nn.Module, dimension: int) -> None:
        super().__init__()
        self.kernel, self.dimension = kernel, dimension

    def exists(self) -> bool:
        """Whether the kernel is one."""
        return isinstance(self.kernel, Kernel) and as_isotropic(self.kernel, self.dimension) is not None

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        closed = as_isotropic(self.kernel, self.dimension)
        assert closed is not None
        return closed.variance[0], closed.nugget[0], closed.transform[0]

    def at(self, model: KernelParameters, theta: Tensor) -> _ClosedAt:
        """Values and derivatives at ``theta``."""

        def values(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raw = {f"kernel.{path}": value for path, value in model.raw_values(point).items()}
            found: tuple[Tensor, Tensor, Tensor] = torch.func.functional_call(self, raw, ())
            return found

        with torch.enable_grad():
            point = theta.detach().clone().requires_grad_()
            variance, nugget, transform = values(point)
            flat = torch.cat((variance.reshape(1), nugget.reshape(1), transform.reshape(-1)))
            slopes = [
                torch.autograd.grad(entry, point, retain_graph=True, allow_unused=True)[0]
                if entry.requires_grad
                else None
                for entry in flat
            ]
        zero = torch.zeros_like(theta)
        table = torch.stack([zero if slope is None else slope for slope in slopes])
        matrix = transform.detach()
        change = table[2:].reshape(*matrix.shape, -1).permute(2, 0, 1) @ torch.linalg.inv(matrix)
        isotropic = as_isotropic(self.kernel, self.dimension)
        assert isotropic is not None
        return _ClosedAt(
            isotropic.family,
            float(variance.detach()),
            float(nugget.detach()),
            matrix,
            table[0].contiguous(),
            table[1].contiguous(),
            (change + change.mT).contiguous(),
        )


def _collect(function: Any, shape: tuple[int, int], *arguments: Any) -> np.ndarray[Any, Any]:
    *given, begin, end = arguments
    total = np.zeros(shape)
    function(*given, total, begin, end)
    result: np.ndarray[Any, Any] = total.sum(-1)
    return result
