r"""The mean of a field that is kriged, ``μ(s) = f(s)ᵀ β``: known, or functions of the site with unknown β.

Coordinates are centred and scaled by those of the observations before powers are taken, so that coordinates
in metres give well-conditioned equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Drift = str | float | Tensor | Callable[[Tensor], Tensor] | None
_POWERS = {"constant": 0, "linear": 1, "quadratic": 2}


class DriftModel:
    """Functions ``f_1, …, f_q`` of a site.

    Args:
        drift: None or a number (a known mean: simple kriging), "constant" (ordinary kriging), "linear" or
            "quadratic" in the coordinates (universal kriging), a function of coordinates ``(n, d) → (n, q)``,
            or covariates at the observations ``(n, q)`` or ``(n,)`` (external drift). An intercept is added
            to functions and covariates that do not span one.
        sites: of the observations, ``(n, d)``.

    Raises:
        ValueError: another drift; covariates that are missing or of another shape; functions that are
            linearly dependent on the sites, or as many as sites.
    """

    def __init__(self, drift: Drift, sites: Tensor) -> None:
        self.mean = 0.0
        self.given: Tensor | None = None
        self.function: Callable[[Tensor], Tensor] | None = None
        self.degree = -1
        self.intercept = False
        self._centre = sites.mean(dim=0)
        self._scale = (sites - self._centre).square().mean(dim=0).sqrt().clamp(min=1e-300)
        if isinstance(drift, Tensor) and drift.ndim > 0:
            self._covariates(drift, len(sites))
        elif drift is None or isinstance(drift, int | float | Tensor):
            self.mean = 0.0 if drift is None else float(drift)
            if not math.isfinite(self.mean):
                raise ValueError(f"the known mean drift= must be finite, got {drift!r}")
        elif isinstance(drift, str) and drift in _POWERS:
            self.degree = _POWERS[drift]
        elif callable(drift):
            self.function = drift
        else:
            raise ValueError(
                f"drift must be None, a number, {', '.join(map(repr, _POWERS))}, a function of the "
                f"coordinates or covariates (n, q), got {drift!r}"
            )
        if self.function is not None or self.given is not None:
            columns = self._raw(sites, self.given)
            self.intercept = not _spans_one(columns)
        self.columns = self.at(sites, self.given)
        self._check()

    @property
    def number(self) -> int:
        """``q``, 0 where the mean is known."""
        return self.columns.shape[1]

    @property
    def needs_covariates(self) -> bool:
        """Whether values of the drift must be given at the targets."""
        return self.given is not None

    def at(self, sites: Tensor, covariates: Tensor | None = None) -> Tensor:
        """``f`` at ``sites`` ``(t, d)``, ``(t, q)``, with ``covariates`` ``(t, q')`` of an external drift."""
        if self.degree >= 0:
            return self._powers(sites)
        if self.function is None and self.given is None:
            return torch.zeros(len(sites), 0, dtype=torch.float64)
        columns = self._raw(sites, covariates)
        if self.intercept:
            columns = torch.cat((torch.ones(len(sites), 1, dtype=torch.float64), columns), dim=1)
        return columns

    def _powers(self, sites: Tensor) -> Tensor:
        x = (sites - self._centre) / self._scale
        parts = [torch.ones(len(sites), 1, dtype=torch.float64)]
        if self.degree >= 1:
            parts.append(x)
        if self.degree == 2:
            row, column = torch.triu_indices(x.shape[1], x.shape[1])
            parts.append(x[:, row] * x[:, column])
        return torch.cat(parts, dim=1)

    def _raw(self, sites: Tensor, covariates: Tensor | None) -> Tensor:
        if self.function is not None:
            columns = torch.as_tensor(self.function(sites)).detach().double()
            columns = columns.unsqueeze(1) if columns.ndim == 1 else columns
            if columns.ndim != 2 or len(columns) != len(sites):
                raise ValueError(
                    f"the function drift= must take coordinates ({len(sites)}, {sites.shape[1]}) to "
                    f"({len(sites)}, q), it gave {tuple(columns.shape)}"
                )
        else:
            assert self.given is not None
            if covariates is None:
                raise ValueError(
                    f"the drift is external, {self.given.shape[1]} covariates at the observations: give "
                    "their values at the targets as well, predict(targets, drift=...)"
                )
            columns = torch.as_tensor(covariates).detach().to(device="cpu", dtype=torch.float64)
            columns = columns.unsqueeze(1) if columns.ndim == 1 else columns
            if tuple(columns.shape) != (len(sites), self.given.shape[1]):
                raise ValueError(
                    f"drift= at the targets needs shape ({len(sites)}, {self.given.shape[1]}), one row per "
                    f"target, got {tuple(columns.shape)}"
                )
        if not bool(torch.isfinite(columns).all()):
            bad = int((~torch.isfinite(columns)).any(dim=1).sum())
            raise ValueError(f"the drift is missing or infinite at {bad} of {len(sites)} sites")
        return columns

    def _covariates(self, drift: Tensor, n: int) -> None:
        given = drift.detach().to(device="cpu", dtype=torch.float64)
        given = given.unsqueeze(1) if given.ndim == 1 else given
        if given.ndim != 2 or len(given) != n:
            raise ValueError(
                f"covariates drift= need shape ({n}, q), one row per observation, got {tuple(drift.shape)}"
            )
        self.given = given

    def _check(self) -> None:
        n, q = self.columns.shape
        if q == 0:
            return
        if q > n:
            raise ValueError(
                f"the drift has {q} functions and there are {n} observations: use a simpler drift"
            )
        scale = self.columns.square().mean(dim=0).sqrt().clamp(min=1e-300)
        triangle = torch.linalg.qr(self.columns / scale)[1]
        if bool((triangle.diagonal().abs() < 1e-9 * n**0.5).any()):
            raise ValueError(
                f"the {q} functions of the drift are linearly dependent on the {n} observations (sites on a "
                "line, or a covariate that is constant): use a simpler drift"
            )


def _spans_one(columns: Tensor) -> bool:
    ones = torch.ones(len(columns), 1, dtype=torch.float64)
    scaled = columns / columns.square().mean(dim=0).sqrt().clamp(min=1e-300)
    rest = ones - scaled @ torch.linalg.lstsq(scaled, ones).solution
    return float(rest.square().mean()) < 1e-16
