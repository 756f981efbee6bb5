r"""A Gaussian log-likelihood from products with Γ alone, with the Monte-Carlo error of value and gradient.

With :math:`\Gamma^{-1} \approx W^T W` (:mod:`.near_inverse`) and probes :math:`z_s` of independent signs,

.. math::
    \ell = -\tfrac12\Big[n\log 2\pi - 2\sum_i\log W_{ii} + \tfrac1S\sum_s z_s^T\log(W\Gamma W^T)\,z_s
           + e^T\Gamma^{-1}e\Big]

The quadratic form is by conjugate gradients. Probes are the same at every θ, so that :math:`\ell` is a smooth
function, and its gradient here is the derivative of that function and not another estimate
(:mod:`.quadratic_logarithm`):

.. math::
    \partial\ell = \tfrac12 r^T\,\partial\Gamma\,r - \tfrac1{2S}\sum_s\operatorname{tr}\big[L_s\,
    \partial(W\Gamma W^T)\big] + \sum_i\partial\log W_{ii}, \qquad r = \Gamma^{-1}(e - X\hat\beta)

Both are unbiased for the exact likelihood's, and their spread over the probes gives standard errors. Means
and groups of fields that are observed at the same sites are treated as in :mod:`.dense`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance.numerics.conjugate import conjugate_gradients
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.operators import BoundOperator
from spatialdiff.fitting.likelihoods.probes import ProbedGroup, make_groups
from spatialdiff.fitting.likelihoods.quadratic_logarithm import LogarithmForms, logarithm_forms
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Coregionalization, at_pairs

_REMEMBERED = 128


@dataclass(frozen=True)
class _Summary:
    """What is kept of an evaluation: ``A`` ``(C, q, q)``, ``b`` ``(C, q)``, and per group the values of the
    probes."""

    gram: Tensor
    cross: Tensor
    log_dets: tuple[Tensor, ...]


class StochasticLikelihood(Likelihood):
    """The likelihood through a `BoundOperator`; see the module.

    Args:
        model: the kernel.
        data: the fields.
        restricted: the likelihood of the contrasts that are free of the mean.
        probes: number ``S`` of probes of each pattern of observed sites.
        tolerance: relative residual of solves.
        neighbors: of each site in ``W``.
        max_iterations: of conjugate gradients.
        seed: of the probes.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        restricted: bool = False,
        *,
        probes: int = 16,
        tolerance: float = 1e-8,
        neighbors: int = 20,
        max_iterations: int = 1000,
        seed: int = 0,
    ) -> None:
        if isinstance(model.kernel, Coregionalization):
            raise ValueError("this likelihood is of one kernel: fit a Coregionalization with method='exact'")
        if probes < 2:
            raise ValueError(f"probes must be at least 2 for a standard error, got {probes}")
        if not 0.0 < tolerance < 1.0:
            raise ValueError(f"tolerance must be between 0 and 1, got {tolerance}")
        self.model, self.data, self.restricted = model, data, restricted
        self.probes, self.tolerance, self.neighbors = probes, tolerance, neighbors
        self.max_iterations, self.seed = max_iterations, seed
        self._sites = data.domain.sites().double().cpu()
        self._grouped: list[ProbedGroup] | None = None
        self._past: dict[tuple[float, ...], _Summary] = {}

    @abstractmethod
    def bind(self, theta: Tensor) -> BoundOperator:
        """Γ at ``theta``, of the sites of the domain."""

    @abstractmethod
    def jacobian(self, theta: Tensor) -> Tensor | None:
        """Derivative of the density of a `SpectralOperator`, ``(p, *m)``; else None."""

    @property
    def groups(self) -> list[ProbedGroup]:
        """Fields that are observed at the same sites."""
        if self._grouped is None:
            self._grouped = list(make_groups(self.model, self.data, self._sites, self.neighbors, self.seed))
        return self._grouped

    @property
    def _coefficients(self) -> int:
        return 0 if self.data.design is None else self.data.design.shape[1]

    # ---- algebra
    def _solve(self, bound: BoundOperator, group: ProbedGroup, w: Tensor, b: Tensor) -> Tensor:
        try:
            return conjugate_gradients(
                lambda x: bound.matmul(x, group.rows),
                b,
                lambda r: group.near.apply(w, r, "product", "product_transposed"),
                ndim=1,
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
        except RuntimeError as error:
            if "conjugate gradients" not in str(error):
                raise
            raise NotPositiveDefiniteError from error

    def _log_det(self, bound: BoundOperator, group: ProbedGroup, w: Tensor, probes: Tensor) -> LogarithmForms:
        """``zᵀ log(WΓWᵀ) z`` of every probe, and the vectors of its derivative."""
        near = group.near

        def whitened(x: Tensor) -> Tensor:
            return near.apply(w, bound.matmul(near.apply(w, x, "product_transposed"), group.rows), "product")

        return logarithm_forms(whitened, probes)

    def _derivative(
        self, bound: BoundOperator, group: ProbedGroup, w: Tensor, vectors: Tensor, weight: float
    ) -> Tensor:
        """Of ``weight Σ_r u_rᵀ d(WΓWᵀ) u_r``, ``vectors`` ``(r, n)``, the derivative in the rows of ``W``;
        that through Γ is added to ``bound``."""
        with torch.no_grad():
            back = group.near.apply(w, vectors, "product_transposed")
            bound.add(back, back, group.rows, weight)
            return 2.0 * weight * group.near.outer(vectors, bound.matmul(back, group.rows))

    def __call__(self, theta: Tensor) -> Tensor:
        bound = self.bind(theta)
        channels, q = self.data.channels, self._coefficients
        gram = torch.zeros(channels, q, q, dtype=torch.float64)
        cross = torch.zeros(channels, q, dtype=torch.float64)
        value = 0.0
        slopes = torch.zeros((), dtype=torch.float64)
        kept: list[tuple[ProbedGroup, Tensor, Tensor, Tensor]] = []
        log_dets: list[Tensor] = []
        for group in self.groups:
            rows = group.near.rows(theta)
            w = rows.detach()
            sums = group.sums if q else group.sums[:0]
            right = torch.cat((group.root, group.design, sums))
            with torch.no_grad():
                solved = self._solve(bound, group, w, right)
            root, design, total = solved.split([len(group.root), q, len(sums)])
            gram += group.counts[:, None, None] * (group.design @ design.T)
            if q:
                cross += total @ group.design.T
            kept.append((group, root, design, total))
            factor = -0.5 * group.number
            parts, to_rows = [], torch.zeros_like(w)
            for probes in group.probes(self.probes):
                found = self._log_det(bound, group, w, probes)
                parts.append(found.values)
                if rows.requires_grad:
                    for vectors in found.vectors:
                        to_rows += self._derivative(bound, group, w, vectors, factor / self.probes)
            log_dets.append(torch.cat(parts))
            known = -2.0 * rows[:, -1].log().sum()
            slopes = slopes + factor * known + (rows * to_rows).sum()
            log_det = float(known.detach()) + float(log_dets[-1].mean())
            value += factor * (len(group.rows) * math.log(2.0 * math.pi) + log_det)
            value -= 0.5 * float((group.root * root).sum())
        gram = 0.5 * (gram + gram.mT)
        if q:
            value += self._profile(bound, gram, cross, kept)
        if theta.requires_grad:
            with torch.no_grad():
                for group, root, _, _ in kept:
                    bound.add(root, root, group.rows, 0.5)
        self._remember(theta, _Summary(gram, cross, tuple(log_dets)))
        if not theta.requires_grad:
            return torch.tensor(value, dtype=torch.float64)
        slopes = slopes + bound.forms()
        return value + (slopes - slopes.detach())

    def _profile(
        self,
        bound: BoundOperator,
        gram: Tensor,
        cross: Tensor,
        kept: list[tuple[ProbedGroup, Tensor, Tensor, Tensor]],
    ) -> float:
        """What the coefficients of the mean add to the value; their share of the gradient goes to
        ``bound``."""
        q = gram.shape[-1]
        plain = self._plain_gram()
        value = 0.0
        for channel in range(len(gram)):
            factor, info = torch.linalg.cholesky_ex(gram[channel])
            if int(info):
                raise NotPositiveDefiniteError
            best = torch.cholesky_solve(cross[channel][:, None], factor)[:, 0]
            value += 0.5 * float(best @ cross[channel])
            if self.restricted:
                change = 2.0 * factor.diagonal().log().sum() - torch.logdet(plain[channel])
                value += 0.5 * (q * math.log(2.0 * math.pi) - float(change))
            inverse_root = torch.linalg.solve_triangular(
                factor.T, torch.eye(q, dtype=torch.float64), upper=True
            )
            with torch.no_grad():
                for group, _, design, total in kept:
                    count = float(group.counts[channel])
                    fitted = (best @ design)[None]
                    bound.add(fitted, total[channel : channel + 1], group.rows, -1.0)
                    bound.add(fitted, fitted, group.rows, 0.5 * count)
                    if self.restricted:
                        spread = inverse_root.T @ design
                        bound.add(spread, spread, group.rows, 0.5 * count)
        return value

    def _plain_gram(self) -> Tensor:
        return sum(
            (g.counts[:, None, None] * (g.design @ g.design.T) for g in self.groups), start=torch.zeros(())
        )

    # ---- what is known about it
    def _remember(self, theta: Tensor, summary: _Summary) -> None:
        if len(self._past) >= _REMEMBERED:
            self._past.pop(next(iter(self._past)))
        self._past[tuple(theta.tolist())] = summary

    def _summary(self, theta: Tensor) -> _Summary:
        key = tuple(theta.tolist())
        if key not in self._past:
            self(theta.detach())
        return self._past[key]

    def standard_error(self, theta: Tensor) -> float:
        """Monte-Carlo standard error of the value, nats: the spread over the probes."""
        log_dets = self._summary(theta).log_dets
        variance = sum(
            (0.5 * group.number) ** 2 * float(values.var()) / len(values)
            for group, values in zip(self.groups, log_dets, strict=True)
        )
        return math.sqrt(variance)

    def gradient_covariance(self, theta: Tensor) -> Tensor:
        """Monte-Carlo covariance ``(p, p)`` of the gradient."""
        theta = theta.detach()
        jacobian, bound = self.jacobian(theta), self.bind(theta)
        total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
        for group in self.groups:
            point = theta.clone().requires_grad_()
            rows = group.near.rows(point)
            slopes = []
            for probes in group.probes(self.probes):
                for vectors in self._log_det(bound, group, rows.detach(), probes).vectors:
                    own = bound.fresh()
                    to_rows = self._derivative(own, group, rows.detach(), vectors, -0.5 * group.number)
                    (slope,) = torch.autograd.grad(rows, point, to_rows, retain_graph=True)
                    slopes.append(slope + own.gradient(jacobian))
            centred = torch.stack(slopes)
            centred = centred - centred.mean(dim=0)
            total += centred.T @ centred / (len(slopes) * (len(slopes) - 1))
        return total

    def gradient_standard_error(self, theta: Tensor) -> Tensor:
        """Monte-Carlo standard error ``(p,)`` of each entry of the gradient."""
        return self.gradient_covariance(theta).diagonal().sqrt()

    def coefficients(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None:
            return None
        summary = self._summary(theta)
        found: Tensor = torch.linalg.solve(summary.gram, summary.cross.unsqueeze(-1)).squeeze(-1)
        return found

    def coefficient_covariance(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None:
            return None
        inverse: Tensor = torch.linalg.inv(self._summary(theta).gram)
        return inverse

    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        n = len(self._sites)
        kernel = self.model.fitted(theta, torch.float64)
        with torch.no_grad():
            weight = torch.full((1, n), 1.0 / n, dtype=torch.float64)
            product = self.bind(theta.detach()).matmul(weight, torch.arange(n))
            at_site = float(at_pairs(kernel, self._sites, self._sites).mean())
        return float((weight * product).sum()), at_site
