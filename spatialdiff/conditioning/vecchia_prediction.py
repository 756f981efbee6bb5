r"""Joint prediction at many targets from many observations by Vecchia's approximation.

The observations ``y`` come first and the targets ``x`` after them, each in maximin order, and every one is
conditioned on its ``m`` nearest among those before it, whether observed or not. The approximate precision of
``(y, x)`` is ``WᵀW`` with ``W`` lower triangular and sparse, in blocks ``W_oo``, ``W_to``, ``W_tt``, so that

``x | y ~ N(-W_tt⁻¹ W_to y, (W_ttᵀ W_tt)⁻¹)``

and mean, variance and joint draws are triangular products and solves, ``O((n + t) m³)`` in all (Katzfuss,
Guinness, Gong & Zilber 2020, "Vecchia approximations of Gaussian-process predictions", their response-first
ordering). With a drift ``Fβ``, generalised least squares under the same approximation: ``β̂ = (F̃ᵀF̃)⁻¹F̃ᵀỹ``
with ``F̃ = W_oo F``, ``ỹ = W_oo y``, and ``r = f_t + W_tt⁻¹W_to F`` adds ``r (F̃ᵀF̃)⁻¹ rᵀ`` to the covariance.
With ``m ≥ n + t - 1`` all of it is exact kriging.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.stationary import split_nugget
from spatialdiff.covariance.points.conditionals import conditional_rows
from spatialdiff.covariance.points.metric import neighbour_metric
from spatialdiff.covariance.points.neighbours import previous_neighbours
from spatialdiff.covariance.points.ordering import order_sites
from spatialdiff.covariance.points.triangular import SparsePattern, choose_engine
from spatialdiff.domains.points import as_sites
from spatialdiff.kernels import at_pairs


class VecchiaPrediction:
    """The joint law of a field at ``targets`` given observations.

    Args:
        kernel: any gpytorch kernel; one set of hyperparameters.
        sites: of the observations, ``(n, d)`` in the kernel's unit of length.
        values: ``(n,)``, in units of the field.
        targets: ``(t, d)``; equal ones are one target.
        design, target_design: the drift functions at the sites ``(n, q)`` and targets ``(t, q)``; None: the
            mean is 0.
        noise: variance of the measurement errors, one number or one per observation.
        neighbors: ``m``.
        nugget: whether the kernel's nugget is part of what is predicted, so that a target on a site without
            noise has its value; otherwise it is noise.
        engine: as in `VecchiaCovariance`.

    Raises:
        ValueError: shapes that do not fit, equal sites without noise or nugget, drift functions that are
            linearly dependent on the sites, a covariance that is not positive definite.

    Source: Katzfuss, Guinness, Gong & Zilber 2020, JABES 25, 383-414, sections 3 and 4.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        sites: Tensor,
        values: Tensor,
        targets: Tensor,
        *,
        design: Tensor | None = None,
        target_design: Tensor | None = None,
        noise: float | Tensor = 0.0,
        neighbors: int = 30,
        nugget: bool = True,
        engine: str = "auto",
    ) -> None:
        sites, targets = as_sites(sites, "VecchiaPrediction"), as_sites(targets, "VecchiaPrediction")
        n = len(sites)
        values = torch.as_tensor(values).detach().to(torch.float64)
        if targets.shape[1] != sites.shape[1] or values.shape != (n,):
            raise ValueError(
                f"VecchiaPrediction: sites {tuple(sites.shape)}, values {tuple(values.shape)} and targets "
                f"{tuple(targets.shape)} do not fit; needed (n, d), (n,) and (t, d)."
            )
        if (design is None) != (target_design is None):
            raise ValueError("VecchiaPrediction: a drift needs design and target_design, both or neither.")
        if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 1:
            raise ValueError(
                f"VecchiaPrediction: neighbors must be a whole number from 1, got {neighbors!r}."
            )
        self.smooth, self.discontinuous = split_nugget(kernel)
        self.with_nugget = nugget
        errors = torch.as_tensor(noise, dtype=torch.float64).expand(n).clone()
        self._distinct(targets, target_design)
        with torch.no_grad():
            self._read_off(sites, values, errors)
            self._condition(sites, errors, neighbors, choose_engine(engine))
            self._solve_drift(values, design)

    def _distinct(self, targets: Tensor, design: Tensor | None) -> None:
        """Every target once; with covariates of its own where there are any."""
        whole = targets if design is None else torch.cat([targets, design.to(torch.float64)], -1)
        unique, self._group = torch.unique(whole, dim=0, return_inverse=True)
        self._targets, self._target_design = unique[:, : targets.shape[1]], unique[:, targets.shape[1] :]

    def _read_off(self, sites: Tensor, values: Tensor, errors: Tensor) -> None:
        """Targets that are observed without error, and those that remain."""
        together = torch.cat([sites, self._targets])
        _, group = torch.unique(together, dim=0, return_inverse=True)
        n, count = len(sites), int(group.max()) + 1
        first = torch.full((count,), n).scatter_reduce(0, group[:n], torch.arange(n), "amin")
        repeated = first[group[:n]] != torch.arange(n)
        bare = repeated & (errors + errors[first[group[:n]]] + self.discontinuous == 0)
        if bool(bare.any()):
            later = int(bare.nonzero()[0])
            raise ValueError(
                f"VecchiaPrediction: {int(bare.sum())} observations repeat the site of an earlier one, such "
                f"as {int(first[group[later]])} and {later}; average them, give noise=, or add a Nugget."
            )
        twin = first[group[n:]]
        twin = torch.where(twin < n, twin, -1)
        known = (twin >= 0) & (errors[twin] == 0)
        if self.discontinuous and not self.with_nugget:
            known = torch.zeros_like(known)
        self._known, self._open = known.nonzero().squeeze(-1), (~known).nonzero().squeeze(-1)
        self._known_values = values[twin[self._known]]
        self._twin = twin[self._open]

    def _condition(self, sites: Tensor, errors: Tensor, neighbors: int, engine: str) -> None:
        """Orders, neighbours and the rows of ``W``."""
        targets = self._targets[self._open]
        metric = neighbour_metric(self.smooth or _Flat(), torch.cat([sites, targets]))
        self._order = order_sites("maximin", sites @ metric, engine)
        late = order_sites("maximin", targets @ metric, engine) if len(targets) else torch.arange(0)
        self._late = late
        n = len(sites)
        place = torch.cat([sites[self._order], targets[late]])
        # what the covariance must know of a site besides: its error, whether it is a target, its twin
        marks = torch.stack(
            [
                torch.cat([errors[self._order], torch.zeros(len(late), dtype=torch.float64)]),
                torch.cat([torch.zeros(n), torch.ones(len(late))]).double(),
                torch.cat([self._order, self._twin[late]]).double(),
            ],
            dim=-1,
        )
        neighbours = previous_neighbours(place @ metric, neighbors)
        pattern = SparsePattern(neighbours, engine)
        rows = conditional_rows(self._covariance, torch.cat([place, marks], -1), pattern)
        self._n, self._pattern, self._rows = n, pattern, rows.unsqueeze(0)
        among = neighbours[n:] >= n
        first = torch.argsort((~among).int(), dim=-1, stable=True)
        shifted = torch.where(among, neighbours[n:] - n, -1).gather(1, first)
        weights = torch.where(among, rows[n:, :-1], 0.0).gather(1, first)
        self._inner = SparsePattern(shifted.contiguous(), engine)
        self._inner_rows = torch.cat([weights, rows[n:, -1:]], -1).unsqueeze(0)

    def _covariance(self, x1: Tensor, x2: Tensor, different: Tensor) -> Tensor:
        d = x1.shape[-1] - 3
        shape = torch.broadcast_shapes(x1.shape[:-1], x2.shape[:-1])
        if self.smooth is None:
            values = torch.zeros(shape, dtype=torch.float64)
        else:
            values = at_pairs(self.smooth, x1[..., :d], x2[..., :d]).to(torch.float64)
        target1, target2 = x1[..., d + 1], x2[..., d + 1]
        wanted = 1.0 if self.with_nugget else 0.0
        own = x1[..., d] + self.discontinuous * torch.where(target1 == 0, 1.0, wanted).to(values)
        # a target on a site shares the nugget of its first observation
        shared = (target1 != target2) & (x1[..., d + 2] == x2[..., d + 2])
        common = wanted * self.discontinuous * shared.to(values)
        return values + torch.where(different, common, own)

    def _solve_drift(self, values: Tensor, design: Tensor | None) -> None:
        columns = values[self._order, None]
        if design is not None:
            columns = torch.cat([columns, design[self._order].to(torch.float64)], -1)
        whole = torch.cat([columns, torch.zeros(len(self._late), columns.shape[1], dtype=torch.float64)])
        product = self._pattern.apply("product", self._rows, whole.unsqueeze(0))
        given = -self._inner.apply("solve", self._inner_rows, product[:, self._n :])[0]
        white = product[0, : self._n]
        self._mean, self.coefficients = given[:, 0], torch.zeros(0, dtype=torch.float64)
        self._reach = torch.zeros(len(self._late), 0, dtype=torch.float64)
        if design is None:
            return
        scale = white[:, 1:].norm(dim=0)
        q, r = torch.linalg.qr(white[:, 1:] / scale)
        if len(r) < r.shape[1] or bool((r.diagonal().abs() < 1e-10).any()):
            raise ValueError(
                f"VecchiaPrediction: the {r.shape[1]} drift functions are linearly dependent on the "
                f"{self._n} sites; leave some out."
            )
        root = torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=torch.float64), upper=True)
        # β̂ has the covariance root rootᵀ, in the scale of the columns
        self._root = root / scale[:, None]
        self.coefficients = self._root @ (q.mT @ white[:, 0])
        rest = self._target_design[self._open][self._late] - given[:, 1:]
        self._reach = rest @ self._root
        self._mean = self._mean + rest @ self.coefficients

    # ---- results, in the order of the targets that were given
    def _spread(self, late: Tensor, known: Tensor) -> Tensor:
        """Values ``(..., late)`` in the order of conditioning and at known targets → ``(..., t)``."""
        full = torch.zeros(*late.shape[:-1], len(self._targets), dtype=torch.float64)
        full[..., self._open[self._late]] = late
        full[..., self._known] = known
        return full[..., self._group]

    def mean(self) -> Tensor:
        """``E[x | y]``, ``(t,)`` float64."""
        return self._spread(self._mean, self._known_values)

    def variance(self) -> Tensor:
        """``Var(x | y)``, the error of the drift included, ``(t,)`` float64."""
        inner = self._inner.square_norms(self._inner_rows)[0]
        return self._spread(inner + self._reach.square().sum(-1), torch.zeros(len(self._known)).double())

    def simulate(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``n`` joint draws of ``x | y``, the drift's coefficients drawn too, ``(n, t)`` float64."""
        size = (len(self._late), n)
        white = torch.randn(size, generator=generator, dtype=torch.float64)
        draws = self._inner.apply("solve", self._inner_rows, white.unsqueeze(0))[0].mT + self._mean
        if self._reach.shape[1]:
            drift = torch.randn(n, self._reach.shape[1], generator=generator, dtype=torch.float64)
            draws = draws + drift @ self._reach.mT
        return self._spread(draws, self._known_values)

    def covariance(self) -> Tensor:
        """``Cov(x | y)`` of all targets, ``(t, t)`` float64; for few targets."""
        eye = torch.eye(len(self._late), dtype=torch.float64)
        root = self._inner.apply("solve", self._inner_rows, eye.unsqueeze(0))[0]
        joint = torch.cat([root, self._reach], -1)
        spread = self._spread(joint.mT, torch.zeros(len(self._known)).double())
        return spread.mT @ spread


class _Flat(gpytorch.kernels.Kernel):
    """Stands for no continuous part: all directions are alike."""

    is_stationary = False
