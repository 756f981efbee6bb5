r"""The linear model of coregionalisation: ``Γ = Σ_q B_q ⊗ k_q`` over channels.

``C(h) = Σ_q B_q k_q(h)`` is the matrix of covariances and cross-covariances of ``C`` channels at lag ``h``,
positive definite where every ``B_q = L_q L_qᵀ`` is positive semi-definite [Journel & Huijbregts 1978, section
III.B.3; Wackernagel 2003, chapter 26]. One term is the intrinsic model: the same correlation in every
channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.kernels.algebra import at_lags, at_pairs
from spatialdiff.kernels.lags import density

_TOLERANCE = 1e-10


class Coregionalization(nn.Module):
    r"""``C(x, x') = Σ_q B_q k_q(x, x')`` with ``B_q = L_q L_qᵀ``.

    Only the products of ``B_q`` and the variance of ``k_q`` are identified: give the kernels variance 1, and
    freeze it before a fit. ``L_q`` is a parameter ``(*batch, C, rank)``, with the rank of the ``B_q`` that
    was given; it is unique up to rotations of its columns.

    Args:
        terms: pairs ``(B_q, k_q)``; ``B_q`` symmetric positive semi-definite ``(C, C)``, or a batch
            ``(*batch, C, C)`` of them with kernels of that ``batch_shape``.

    Raises:
        TypeError: a term that is not a matrix and a kernel.
        ValueError: no term; matrices of different shapes, not symmetric, or with a negative eigenvalue.
    """

    def __init__(self, terms: Sequence[tuple[Tensor | Sequence[Sequence[float]], Kernel]]) -> None:
        super().__init__()
        roots, kernels = [], []
        for number, term in enumerate(terms):
            title = f"Coregionalization: term {number}"
            if not isinstance(term, Sequence) or len(term) != 2 or not isinstance(term[1], Kernel):
                raise TypeError(f"{title} must be a pair (B, kernel), got {term!r}.")
            roots.append(_root(torch.as_tensor(term[0], dtype=torch.float64).detach(), title))
            kernels.append(term[1])
        if not roots:
            raise ValueError("Coregionalization: needs at least one term (B, kernel).")
        channels = {root.shape[-2] for root in roots}
        if len(channels) > 1:
            raise ValueError(f"Coregionalization: the matrices have different sizes {sorted(channels)}.")
        self.channels = channels.pop()
        self.roots = nn.ParameterList([nn.Parameter(root) for root in roots])
        self.kernels = nn.ModuleList(kernels)

    @property
    def terms(self) -> list[tuple[Tensor, Kernel]]:
        """``(B_q, k_q)``, the matrices ``(*batch, C, C)`` in float64 with their graph."""
        pairs = zip(self.roots, self.kernels, strict=True)
        return [(root @ root.mT, kernel) for root, kernel in pairs]

    @property
    def batch_shape(self) -> torch.Size:
        shapes = [root.shape[:-2] for root in self.roots]
        return torch.Size(torch.broadcast_shapes(*shapes, *(kernel.batch_shape for kernel in self.kernels)))

    @property
    def is_stationary(self) -> bool:
        return all(bool(kernel.is_stationary) for kernel in self.kernels)

    @property
    def variance(self) -> Tensor:
        """``C(0) = Σ_q B_q σ_q²``, the covariance of the channels at a site, ``(*batch, C, C)``."""
        values = [torch.as_tensor(kernel.variance).unsqueeze(-1) for kernel in self.kernels]
        return self._total(values).squeeze(-3)

    def cross(self, h: Tensor) -> Tensor:
        """``C(h)`` of differences ``(..., d)`` → ``(*batch, ..., C, C)``.

        Raises:
            ValueError: a kernel that is not stationary; use `cross_pairs`.
        """
        for kernel in self.kernels:
            if not kernel.is_stationary:
                raise ValueError(
                    f"Coregionalization: {type(kernel).__name__} is not stationary; use cross_pairs(x, x')."
                )
        return self._total([at_lags(kernel, h) for kernel in self.kernels])

    def cross_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``C(x, x')`` of coordinates ``(..., d)`` that broadcast → ``(*batch, ..., C, C)``."""
        return self._total([at_pairs(kernel, x1, x2) for kernel in self.kernels])

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``Σ_q B_q S_q(ω)``, the spectral and cross-spectral densities, ``(..., d)`` → ``(*batch, ..., C,
        C)``.
        """
        return self._total([density(kernel, omega) for kernel in self.kernels])

    def _total(self, values: list[Tensor]) -> Tensor:
        total: Tensor | None = None
        for (matrix, kernel), value in zip(self.terms, values, strict=True):
            matrix = matrix.to(value)
            sites = value.dim() - len(kernel.batch_shape)
            matrix = matrix.reshape(*matrix.shape[:-2], *(1,) * sites, *matrix.shape[-2:])
            term = matrix * value[..., None, None]
            total = term if total is None else total + term
        assert total is not None
        return total

    def __repr__(self) -> str:
        return f"Coregionalization({self.channels} channels: {', '.join(map(repr, self.kernels))})"


def _root(matrix: Tensor, title: str) -> Tensor:
    """``L`` with ``L Lᵀ = B``: the Cholesky factor, or for a singular ``B`` one with as many columns as its
    rank.
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"{title}: B must be a square matrix, got shape {tuple(matrix.shape)}.")
    if not bool(torch.isfinite(matrix).all()) or not torch.allclose(matrix, matrix.mT, rtol=1e-10):
        raise ValueError(f"{title}: B must be symmetric and finite, got {matrix.tolist()}.")
    values, vectors = torch.linalg.eigh(matrix)
    largest = values[..., -1:]
    if not bool((largest > 0).all()) or bool((values < -_TOLERANCE * largest).any()):
        raise ValueError(
            f"{title}: B must be positive semi-definite and not 0, its eigenvalues are "
            f"{[float(f'{v:.3g}') for v in values.reshape(-1).tolist()]}."
        )
    above = values > _TOLERANCE * largest
    if bool(above.all()):
        root: Tensor = torch.linalg.cholesky(matrix)
    else:
        rank = int(above.sum(-1).max())
        root = vectors[..., -rank:] * values[..., -rank:].clamp_min(0.0).sqrt().unsqueeze(-2)
    return root
