r"""Products with ``Γ(θ)`` that do not form it, and the derivative of bilinear forms in it.

For vectors :math:`l_s, r_s` at some sites the sum :math:`\sum_s l_s^T\Gamma(\theta)\,r_s` is all that a
gradient of a Gaussian likelihood needs. Two ways to have it:

- *spectral*: Γ is a part of a circulant matrix with eigenvalues :math:`f_k(\theta)` on a torus of ``m``
  cells, so that the sum is linear in :math:`f`: with :math:`F` the discrete Fourier transform,
  :math:`\sum_k f_k(\theta)\,\frac1m\sum_s \operatorname{Re}\overline{(Fl_s)_k}(Fr_s)_k`. The kernel is
  evaluated once, whatever the number of vectors;
- *tiles*: any kernel on any sites, by :mod:`spatialdiff.covariance.points.tile_product`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from spatialdiff.covariance.points.tile_product import choose_backend, kernel_product
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.own_kernel import OwnKernel
from spatialdiff.fitting.parameters import KernelParameters

_STEP = 1e-4


class BoundOperator(ABC):
    """``Γ(θ)`` at one θ."""

    @abstractmethod
    def matmul(self, x: Tensor, rows: Tensor) -> Tensor:
        """``Γ x`` of values ``(S, n)`` at the sites ``rows`` ``(n,)``, without a graph."""

    @abstractmethod
    def add(self, left: Tensor, right: Tensor, rows: Tensor, weight: float = 1.0) -> None:
        """Count ``weight Σ_s l_sᵀ Γ r_s`` in `forms`; vectors ``(S, n)``, taken as constants."""

    @abstractmethod
    def forms(self) -> Tensor:
        """What was added up, as a function of θ: right in its derivative only."""

    @abstractmethod
    def fresh(self) -> BoundOperator:
        """The same with nothing added up."""

    @abstractmethod
    def gradient(self, jacobian: Tensor | None) -> Tensor:
        """Derivative ``(p,)`` of what was added up, given that of the density ``(p, *m)``, if any."""


class SpectralOperator(BoundOperator):
    """Γ between cells of a torus.

    Args:
        density: eigenvalues of the circulant in the layout of ``fftn``, ``(*m)``, differentiable in θ.
        cells: flat indices in the torus of all sites.
    """

    def __init__(self, density: Tensor, cells: Tensor) -> None:
        self.density, self.cells = density, cells
        self.shape = tuple(density.shape)
        self._axes = tuple(range(-density.ndim, 0))
        self._half = density.detach()[..., : self.shape[-1] // 2 + 1].contiguous()
        self._sum = torch.zeros_like(self._half)

    def spread(self, x: Tensor, rows: Tensor) -> Tensor:
        """Values ``(S, n)`` at sites on the whole torus, 0 elsewhere."""
        whole = x.new_zeros(len(x), math.prod(self.shape))
        return whole.index_copy_(1, self.cells[rows], x).reshape(len(x), *self.shape)

    def everywhere(self, x: Tensor, rows: Tensor) -> Tensor:
        """``C Pᵀ x``: the product at every cell of the torus, ``(S, *m)``."""
        spectrum = torch.fft.rfftn(self.spread(x, rows), dim=self._axes) * self._half
        result: Tensor = torch.fft.irfftn(spectrum, s=self.shape, dim=self._axes)
        return result

    def matmul(self, x: Tensor, rows: Tensor) -> Tensor:
        cells = self.cells[rows]
        # a few fields at a time: the transforms are larger than the fields
        size = max(1, int(2**24 / math.prod(self.shape)))
        parts = [self.everywhere(part, rows).flatten(1)[:, cells] for part in x.split(size)]
        return torch.cat(parts)

    def add(self, left: Tensor, right: Tensor, rows: Tensor, weight: float = 1.0) -> None:
        for one, other in zip(left, right, strict=True):
            first = torch.fft.rfftn(self.spread(one[None], rows)[0])
            same = one is other or one.data_ptr() == other.data_ptr()
            second = first if same else torch.fft.rfftn(self.spread(other[None], rows)[0])
            self._sum += weight * (first.real * second.real + first.imag * second.imag)

    def _weights(self) -> Tensor:
        last = self.shape[-1]
        twice = torch.full((last // 2 + 1,), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        if last % 2 == 0:
            twice[-1] = 1.0
        return self._sum * twice / math.prod(self.shape)

    def forms(self) -> Tensor:
        return (self.density[..., : self._half.shape[-1]] * self._weights()).sum()

    def fresh(self) -> SpectralOperator:
        return SpectralOperator(self.density, self.cells)

    def gradient(self, jacobian: Tensor | None) -> Tensor:
        assert jacobian is not None
        return (jacobian[..., : self._half.shape[-1]] * self._weights()).flatten(1).sum(1)


class TileOperator(BoundOperator):
    """Γ of any kernel between any sites.

    Args:
        model: the kernel.
        product: a `KernelProduct` of its kernel.
        theta: the parameters.
    """

    def __init__(self, model: KernelParameters, product: KernelProduct, theta: Tensor) -> None:
        self._product, self.theta, self._model = product, theta, model
        self._point = theta.detach().clone()
        self._sum = torch.zeros_like(self._point)

    def matmul(self, x: Tensor, rows: Tensor) -> Tensor:
        self._product.own.set(self._point)
        with torch.no_grad():
            return self._product(x, rows)

    def add(self, left: Tensor, right: Tensor, rows: Tensor, weight: float = 1.0) -> None:
        if not len(left):
            return
        self._product.own.set(self._point)
        with torch.enable_grad():
            form = (left.detach() * self._product(right.detach(), rows)).sum()
        self._sum += weight * self._product.own.slope(form, self._point)

    def forms(self) -> Tensor:
        return (self.theta * self._sum).sum()

    def fresh(self) -> TileOperator:
        return TileOperator(self._model, self._product, self.theta)

    def gradient(self, jacobian: Tensor | None) -> Tensor:
        return self._sum


class KernelProduct:
    """``x → K x`` between some of a list of sites ``(n, d)``, of a kernel that is set to θ."""

    def __init__(self, model: KernelParameters, sites: Tensor, backend: str = "auto") -> None:
        self.own = OwnKernel(model)
        self.sites = sites
        self.backend = choose_backend(backend, self.own.kernel, sites.shape[-1], sites.device)[0]

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """The product with values ``(S, n)``."""
        return kernel_product(self.own.kernel, self.sites[rows], x, self.backend)


def finite(density: Tensor) -> Tensor:
    """``density``, or ``NotPositiveDefiniteError`` where it is not finite."""
    if not bool(torch.isfinite(density.detach()).all()):
        raise NotPositiveDefiniteError
    return density


def density_jacobian(
    model: KernelParameters, density_at: Callable[[Tensor], Tensor], theta: Tensor
) -> Tensor:
    """Derivatives of a density by central differences, one-sided at bounds, ``(p, *m)``."""
    slopes = []
    with torch.no_grad():
        for j in range(len(theta)):
            low, high = model.free[j].theta_bounds
            below, above = theta.detach().clone(), theta.detach().clone()
            below[j], above[j] = max(float(theta[j]) - _STEP, low), min(float(theta[j]) + _STEP, high)
            slopes.append((density_at(above) - density_at(below)) / float(above[j] - below[j]))
    return torch.stack(slopes)
