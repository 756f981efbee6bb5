r"""The exact Gaussian log-likelihood through a structure of Γ that has a solve and a determinant.

.. math::
    \ell = -\tfrac12\Big[N C n\log 2\pi + N C\log\det\Gamma + \sum_{ic} e_{ic}^T\Gamma^{-1}e_{ic}
           - N\sum_c b_c^T A^{-1} b_c\Big], \quad A = X^T\Gamma^{-1}X,\; b_c = X^T\Gamma^{-1}\bar e_c

with :math:`\Gamma(\theta)` any :class:`~spatialdiff.covariance.Covariance`: Kronecker factors, the sparse
precision of a mesh or a graph, harmonics of a sphere. The structure is built once, on a kernel of its own
that is set to θ; the derivative in its parameters is taken there and then (a structure may compute what a
backward pass needs only when it runs), and goes on to θ by the chain rule. The restricted likelihood is that
of :mod:`.dense`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import covariance
from spatialdiff.domains import Sphere
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.own_kernel import OwnKernel
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters


class StructuredLikelihood(Likelihood):
    """Exact likelihood by a structure of `spatialdiff.covariance`.

    Args:
        model: the kernel.
        data: fields without a pattern of missing values; masked cells are fine where the structure takes
            them.
        method: of `spatialdiff.covariance.covariance`, such as "kronecker", "spde", "graph", "sphere".
        restricted: the likelihood of the contrasts that are free of the mean.
        options: of the structure.

    Raises:
        ValueError: missing values that differ between fields; what the structure refuses; a determinant that
            is an estimate.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        method: str,
        restricted: bool = False,
        **options: Any,
    ) -> None:
        if data.observed is not None:
            raise ValueError(
                f"method={method!r} needs every field observed at the same sites; use method='exact', or "
                "'whittle' on a grid"
            )
        self.model, self.data, self.restricted, self.method = model, data, restricted, method
        self.own = OwnKernel(model)
        self.gamma = covariance(self.own.kernel, data.domain, None, method, **options)
        domain = data.domain
        flat = data.flat()
        self._size = domain.size
        columns = (
            torch.zeros(0, flat.shape[-1], dtype=torch.float64) if data.design is None else data.design.T
        )
        # the quadratic forms of many fields are those of a root of their second moment
        vectors = flat.flatten(0, 1)
        if len(vectors) > flat.shape[-1] and not isinstance(domain, Sphere):
            values, axes = torch.linalg.eigh(vectors.T @ vectors)
            vectors = (axes * values.clamp(min=0.0).sqrt()).T
        means = flat.mean(dim=0)
        self._split = (len(vectors), len(columns), len(means))
        self._fields = domain.unflatten(torch.cat((vectors, columns, means)))
        self._weight = self._site_weight()

    def _site_weight(self) -> Tensor | None:
        """A pole of a sphere is one site, written along its row."""
        domain = self.data.domain
        if isinstance(domain, Sphere) and domain.poles:
            weight = torch.ones(domain.shape, dtype=torch.float64)
            weight[0] = weight[-1] = 1.0 / domain.shape[1]
            return weight
        return None

    def _evaluate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``Σ eᵀΓ⁻¹e``, ``A`` ``(q, q)``, ``b`` ``(C, q)`` and ``log det Γ`` of the kernel as it is set."""
        vectors, columns, _ = self._split
        try:
            solved, log_det = self.gamma.solve(self._fields), self.gamma.log_det()
        except (ValueError, RuntimeError) as error:
            if "positive definite" in str(error) or "singular" in str(error) or "cholesky" in str(error):
                raise NotPositiveDefiniteError from error
            raise
        # a pole's value is written along its row, and its share of Γ⁻¹x is spread over it
        left, right = (self.data.domain.flatten(x) for x in (self._fields, solved))
        trace = (left[:vectors] * right[:vectors]).sum()
        design = left[vectors : vectors + columns]
        gram = design @ right[vectors : vectors + columns].T
        cross = right[vectors + columns :] @ design.T
        return trace, 0.5 * (gram + gram.T), cross, log_det

    def __call__(self, theta: Tensor) -> Tensor:
        self.own.set(theta)
        wanted = torch.is_grad_enabled() and theta.requires_grad
        with torch.set_grad_enabled(wanted):
            value = self._value()
        if not wanted:
            return value
        slope = self.own.slope(value, theta)
        return value.detach() + (slope * (theta - theta.detach())).sum()

    def _value(self) -> Tensor:
        data = self.data
        trace, gram, cross, log_det = self._evaluate()
        number, q = data.count * data.channels, self._split[1]
        value = -0.5 * (number * (self._size * math.log(2.0 * math.pi) + log_det) + trace)
        if q:
            factor, info = torch.linalg.cholesky_ex(gram)
            if int(info):
                raise NotPositiveDefiniteError
            z = torch.linalg.solve_triangular(factor, cross.T, upper=False)
            value = value + 0.5 * data.total * z.square().sum()
            if self.restricted:
                design = self._plain_gram()
                change = 2.0 * factor.diagonal().log().sum() - torch.logdet(design)
                value = value + 0.5 * data.channels * (q * math.log(2.0 * math.pi) - change)
        return value

    def _plain_gram(self) -> Tensor:
        vectors, columns, _ = self._split
        flat = self.data.domain.flatten(self._fields[vectors : vectors + columns])
        weight = 1.0 if self._weight is None else self.data.domain.flatten(self._weight)
        return (flat * weight) @ flat.T

    def coefficients(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None:
            return None
        with torch.no_grad():
            self.own.set(theta)
            _, gram, cross, _ = self._evaluate()
            found: Tensor = torch.linalg.solve(gram, cross.T).T
        return found

    def coefficient_covariance(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None:
            return None
        with torch.no_grad():
            self.own.set(theta)
            found: Tensor = torch.linalg.inv(self._evaluate()[1]) / self.data.total
        return found

    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        weight = (
            torch.ones(self.data.domain.shape, dtype=torch.float64) if self._weight is None else self._weight
        )
        weight = self.data.domain.unflatten(self.data.domain.flatten(weight))
        weight = weight / weight.sum()
        with torch.no_grad():
            self.own.set(theta)
            product, variance = self.gamma.matmul(weight), self.gamma.variance()
        return float((weight * product).sum()), float((weight * variance).sum())
