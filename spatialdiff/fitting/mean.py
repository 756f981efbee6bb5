r"""The mean of a field: a known one, one number per site, or a linear model of the sites.

With a design ``X`` (one row per site, one column per coefficient), :math:`\mu = X\beta` per channel. Columns
are made orthonormal, :math:`X = \tilde X T` with :math:`\tilde X^T\tilde X = n I`, so that coordinates in
metres and shares of clay give well-conditioned normal equations; coefficients are reported for the columns
that were given, :math:`\beta = T^{-1}\tilde\beta`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.domains import Domain

Mean = str | Tensor | Callable[[Tensor], Tensor] | None
MODELS = ("constant", "linear", "field")


@dataclass(frozen=True)
class Design:
    """A linear model of the mean at the sites of a domain.

    ``columns`` ``(n, q)`` are orthonormal up to ``√n``; ``transform`` ``(q, q)`` takes their coefficients to
    those of the columns called ``names``.
    """

    model: str
    columns: Tensor
    transform: Tensor
    names: tuple[str, ...]

    def at(self, rows: Tensor) -> Design:
        """The same model on some of the sites (indices or a mask)."""
        return Design(self.model, self.columns[rows], self.transform, self.names)

    @property
    def number(self) -> int:
        """Number ``q`` of coefficients of a channel."""
        return self.columns.shape[1]


def is_known(mean: object, domain: Domain, event: tuple[int, ...]) -> bool:
    """Whether a tensor is a known mean (it broadcasts to one field) and not covariates
    ``(*domain.shape, q)``.

    Raises:
        ValueError: a tensor that is neither, or could be both.
    """
    if not isinstance(mean, Tensor):
        return False
    covariates = mean.ndim == domain.ndim + 1 and tuple(mean.shape[:-1]) == tuple(domain.shape)
    known = _broadcasts(tuple(mean.shape), event)
    if known and covariates:
        raise ValueError(
            f"mean of shape {tuple(mean.shape)} could be a known mean of fields of shape {event} or "
            f"covariates (*{tuple(domain.shape)}, q): give the known mean in full, or covariates as a "
            "function of the coordinates"
        )
    if not known and not covariates:
        raise ValueError(
            f"mean has shape {tuple(mean.shape)}, which does not broadcast to one field of shape {event} "
            f"(a known mean), and is not (*{tuple(domain.shape)}, q) (covariates)"
        )
    return known


def make_design(mean: Mean, domain: Domain) -> Design:
    """The design of ``"constant"``, ``"linear"``, covariates or a function of the coordinates.

    An intercept is added to covariates and functions that do not span one.

    Raises:
        ValueError: covariates with NaN, of a wrong shape, or linearly dependent; more columns than sites; a
            domain without coordinates for ``"linear"`` or a function.
        TypeError: a mean of another kind.
    """
    # a pole of a sphere is written along its row
    n = domain.flatten(torch.zeros(domain.shape)).shape[-1]
    ones = torch.ones(n, 1, dtype=torch.float64)
    if mean == "constant":
        return Design("constant", ones, torch.ones(1, 1, dtype=torch.float64), ("intercept",))
    if mean == "linear":
        sites = domain.sites().double().cpu()
        names = ("intercept", *(f"x{axis}" for axis in range(sites.shape[1])))
        return _orthonormal("linear", torch.cat((ones, sites), dim=1), names)
    if isinstance(mean, Tensor):
        given = mean.detach().to(device="cpu", dtype=torch.float64)
        columns = domain.flatten(given.movedim(-1, 0)).T
        return _with_intercept("covariates", columns, "covariate")
    if callable(mean):
        columns = torch.as_tensor(mean(domain.sites().double().cpu())).detach().double()
        if columns.ndim == 1:
            columns = columns.unsqueeze(1)
        if columns.ndim != 2 or len(columns) != n:
            raise ValueError(
                f"the function of the mean must take coordinates ({n}, {domain.dimension}) to ({n}, q), it "
                f"gave {tuple(columns.shape)}"
            )
        return _with_intercept("function", columns, "feature")
    raise ValueError(
        "mean must be None, 'constant', 'linear', 'field', a tensor (a known mean, or covariates "
        f"(*domain.shape, q)) or a function of the coordinates, got {mean!r}"
    )


def _with_intercept(model: str, columns: Tensor, name: str) -> Design:
    names = tuple(f"{name}{i}" for i in range(columns.shape[1]))
    if not bool(torch.isfinite(columns).all()):
        bad = int((~torch.isfinite(columns)).any(dim=1).sum())
        raise ValueError(
            f"the {name}s of the mean are missing or infinite at {bad} of {len(columns)} sites: give them "
            "at all sites, or mask those"
        )
    ones = torch.ones(len(columns), 1, dtype=torch.float64)
    scaled = columns / columns.square().mean(dim=0).sqrt().clamp(min=1e-300)
    residual = ones - scaled @ torch.linalg.lstsq(scaled, ones).solution
    if float(residual.square().mean()) > 1e-16:
        columns, names = torch.cat((ones, columns), dim=1), ("intercept", *names)
    return _orthonormal(model, columns, names)


def _orthonormal(model: str, columns: Tensor, names: tuple[str, ...]) -> Design:
    n, q = columns.shape
    if q >= n:
        raise ValueError(
            f"the mean has {q} coefficients ({', '.join(names)}) and there are {n} sites: give more sites, "
            "or a simpler mean"
        )
    scale = columns.square().mean(dim=0).sqrt()
    # a column is told from the ones before it relative to its own size
    basis, triangle = torch.linalg.qr(columns / scale.clamp(min=1e-300))
    weak = [names[i] for i in range(q) if float(triangle[i, i].abs()) < 1e-10 * n**0.5]
    if weak:
        raise ValueError(
            f"the columns of the mean are linearly dependent: {', '.join(weak)} adds nothing to the ones "
            "before it; leave it out"
        )
    inverse = torch.linalg.inv(triangle * scale / n**0.5)
    return Design(model, basis * n**0.5, inverse, names)


def _broadcasts(shape: tuple[int, ...], event: tuple[int, ...]) -> bool:
    if len(shape) > len(event):
        return False
    return all(a in (1, b) for a, b in zip(shape[::-1], event[::-1], strict=False))
