r"""Γ on a sphere from data without a family: the smoothed angular power spectrum, and white noise beyond it.

With quadrature weights :math:`w_i` and :math:`\tilde a_{lm} = \sum_i w_i x_i Y_{lm}(x_i)`, the mean power of
degree ``l`` of an isotropic field with spectrum :math:`C_l` up to a degree ``L`` that the grid can tell
apart, plus white noise of variance :math:`\tau^2` at each site, has the expectation

.. math:: \operatorname{E} \tilde C_l = \sum_{l'} M_{ll'} C_{l'} + \tau^2 b, \qquad
   M_{ll'} = \tfrac{1}{2l+1} \sum_{mm'} \Big|\sum_i w_i Y_{lm} Y_{l'm'}\Big|^2, \quad
   b = \tfrac{1}{4\pi} \sum_i w_i^2

(``b`` by the addition theorem). ``M`` is the identity on a Gauss–Legendre grid, whose rule is exact, and
close to it where latitudes are equally spaced. The white part is what the area-weighted variance ``V`` of the
fields has more than the degrees up to ``L``, :math:`V = \sum_{l \le L} \tfrac{2l+1}{4\pi} C_l + \tau^2`: two
linear equations for :math:`C` and :math:`\tau^2`. It stands for everything that the grid does not resolve,
and so is an upper bound of a nugget. :math:`C_l` is smoothed in ``log l`` by the local likelihood of
:mod:`.smoothing`; degree 0, the mean over the sphere, stands alone as in :mod:`.spectrum`. The variance of
Γ is that of the data, at every latitude, and the white part makes it invertible.

Sources: Hivon et al. 2002 (coupling of degrees); Fan & Kreutzberger 1998 (local likelihood); Marinucci &
Peccati 2011, section 5.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.covariance.spheres.harmonics import Harmonics
from spatialdiff.domains import Sphere
from spatialdiff.fitting.nonparametric.smoothing import SpectrumBins, bin_index, smooth_radial
from spatialdiff.fitting.observations import Observations
from spatialdiff.kernels import LegendreSeries, Nugget

# smallest white part and smallest power of a degree, as shares
FLOOR = 1e-6


@dataclass(frozen=True)
class AngularEstimate:
    """A non-parametric spectrum on a sphere.

    Attributes:
        spectrum: ``C_0, …, C_L`` of each channel, ``(C, L+1)``.
        nugget: white variance ``τ²`` of each channel, ``(C,)``; with ``spectrum`` it is Γ.
        bins: the data's and the smooth spectrum by degree.
        parameters: effective number of them.
        variance: of a site, averaged over channels, with its standard error.
        share: of the variance in the mean over the sphere, with its standard error.
        at_floor: whether a mean that was taken off every field left none, so that ``C_0`` is a millionth of
            ``C_1``.
    """

    spectrum: Tensor
    nugget: Tensor
    bins: SpectrumBins
    parameters: float
    variance: float
    variance_error: float
    share: float
    share_error: float
    at_floor: bool

    def kernel(self, channel: int = 0) -> Kernel:
        """``LegendreSeries(C) + Nugget(τ²)`` of a channel: ``sd.covariance(kernel, sphere)`` is exact, with
        inverse and determinant."""
        return LegendreSeries(self.spectrum[channel]) + Nugget(float(self.nugget[channel]))


def estimate_angular_spectrum(data: Observations, smoothing: float = 0.15) -> AngularEstimate:
    """Smooth angular power spectrum and white part of each channel.

    Args:
        data: centred fields on a `Sphere`, without gaps; constant along a pole.
        smoothing: bandwidth in octaves of degree.

    Raises:
        TypeError: another domain.
        ValueError: missing values; a bandwidth that is not positive; a grid that tells fewer than two degrees
            apart; fields that differ along a pole.
    """
    sphere = data.domain
    if not isinstance(sphere, Sphere):
        raise TypeError(f"an angular spectrum needs fields on a Sphere, got {sphere}")
    if data.observed is not None:
        raise ValueError(
            "an angular spectrum needs every site observed: fill the gaps by kriging, or fit a kernel with "
            "missing='omit'"
        )
    if not (smoothing > 0.0 and math.isfinite(smoothing)):
        raise ValueError(f"smoothing is a bandwidth in octaves and must be positive, got {smoothing}")
    lmax = min(sphere.shape[0] - 1, (sphere.shape[1] - 1) // 2)
    if lmax < 2:
        raise ValueError(f"{sphere} is too coarse for a spectrum: at least 3 latitudes and 5 longitudes")
    _check_poles(data.values, sphere)
    coupled = Coupling(sphere, lmax)
    power = coupled.power(data.values).sum(dim=0) / data.count
    weights = (sphere.weights / sphere.radius**2 / (4.0 * math.pi)).reshape(-1)
    total = (data.flat().square() @ weights).sum(dim=0) / data.count
    parts = [_channel(power[c], float(total[c]), coupled, data, smoothing) for c in range(data.channels)]
    spectrum = torch.stack([part.spectrum for part in parts])
    nugget = torch.tensor([part.nugget for part in parts], dtype=torch.float64)
    bins = _bins(parts, data, smoothing)
    return AngularEstimate(
        spectrum,
        nugget,
        bins,
        sum(part.parameters for part in parts),
        *_moments(spectrum, nugget, data),
        at_floor=any(part.at_floor for part in parts),
    )


class Coupling:
    """Mean power per degree on a grid, and what it is expected to be.

    Args:
        sphere: the grid.
        lmax: ``L``, below the number of latitudes and half that of longitudes.
    """

    def __init__(self, sphere: Sphere, lmax: int) -> None:
        self.sphere, self.lmax = sphere, lmax
        harmonics = Harmonics(sphere, lmax)
        rows = sphere.shape[0]
        like = torch.zeros((), dtype=torch.float64)
        self.tables: list[tuple[Tensor, Tensor]] = []
        for m in range(lmax + 1):
            even, odd = harmonics.order(m, like)
            south_to_north = (
                torch.cat([part * sign, part[:, : rows // 2].flip(-1)], dim=-1)
                for part, sign in ((even, 1.0), (odd, -1.0))
            )
            self.tables.append(tuple(south_to_north))  # type: ignore[arg-type]
        self.weights = (sphere.weights / sphere.radius**2).double()
        self.white = float(self.weights.square().sum() / (4.0 * math.pi))
        self.matrix = self._matrix()

    def _matrix(self) -> Tensor:
        """``M``, ``(L+1, L+1)``."""
        rows = self.weights[:, 0] * self.sphere.shape[1]
        found = torch.zeros(self.lmax + 1, self.lmax + 1, dtype=torch.float64)
        for m, parities in enumerate(self.tables):
            for offset, table in enumerate(parities):
                gram = (table * rows) @ table.T
                # the parity of l - m: the rule is symmetric about the equator and couples no others
                degrees = torch.arange(m + offset, self.lmax + 1, 2)
                found[degrees[:, None], degrees] += (2.0 if m else 1.0) * gram.square()
        return found / (2.0 * torch.arange(self.lmax + 1, dtype=torch.float64) + 1.0)[:, None]

    def power(self, fields: Tensor) -> Tensor:
        """``C̃_l``, ``(..., n_φ, n_λ)`` → ``(..., L+1)``."""
        spectrum = torch.fft.rfft(fields * self.weights, dim=-1)
        found = torch.zeros(*fields.shape[:-2], self.lmax + 1, dtype=torch.float64)
        for m, parities in enumerate(self.tables):
            for offset, table in enumerate(parities):
                values = spectrum[..., m] @ table.T.to(spectrum.dtype)
                found[..., m + offset :: 2] += (2.0 if m else 1.0) * values.abs().square()
        return found / (2.0 * torch.arange(self.lmax + 1, dtype=torch.float64) + 1.0)


@dataclass(frozen=True)
class _Part:
    spectrum: Tensor
    nugget: float
    raw: Tensor
    relative: Tensor
    parameters: float
    at_floor: bool


def _channel(power: Tensor, total: float, coupled: Coupling, data: Observations, smoothing: float) -> _Part:
    """Degrees from 1 on, the white part, and degree 0."""
    degrees = torch.arange(1, coupled.lmax + 1, dtype=torch.float64)
    share = (2.0 * degrees + 1.0) / (4.0 * math.pi)
    rest = total - float(power[0]) / (4.0 * math.pi)
    inverse = torch.linalg.solve(
        coupled.matrix[1:, 1:], torch.stack((power[1:], torch.full_like(degrees, coupled.white)), dim=1)
    )
    seen, white = inverse[:, 0], inverse[:, 1]
    # white noise has as much less variance about the mean over the sphere
    about = 1.0 - coupled.white / (4.0 * math.pi)
    nugget = (rest - float(share @ seen)) / (about - float(share @ white))
    nugget = min(max(nugget, FLOOR * rest), (1.0 - FLOOR) * rest)
    dof = (2.0 * degrees + 1.0) * data.count
    # where noise leaves a degree nothing, its power still is positive
    smooth = smooth_radial(seen.clamp(min=FLOOR * float(seen.amax())), degrees, dof, smoothing)
    shape = torch.maximum(smooth.spectrum - nugget * white, 1e-3 * smooth.spectrum)
    shape = shape * (rest - nugget * about) / float(share @ shape)
    raw = torch.cat((power[:1], seen - nugget * white))
    lowest, at_floor = float(shape[0]), False
    if data.count_at_zero:
        raw[0] = power[0] * data.count / data.count_at_zero
        first = float(raw[0] - nugget * coupled.white - coupled.matrix[0, 1:] @ shape)
        if first < FLOOR * lowest:
            first, at_floor = FLOOR * lowest, True
    else:
        first = lowest
    spectrum = torch.cat((torch.tensor([first], dtype=torch.float64), shape))
    return _Part(spectrum, nugget, raw, smooth.relative_error, smooth.parameters + 2.0, at_floor)


def _bins(parts: list[_Part], data: Observations, smoothing: float) -> SpectrumBins:
    degrees = torch.arange(1, parts[0].spectrum.numel(), dtype=torch.float64)
    index, number = bin_index(degrees, smoothing / 2.0)
    weight = 2.0 * degrees + 1.0
    size = torch.zeros(number, dtype=torch.float64).index_add_(0, index, weight)

    def averaged(values: Tensor) -> Tensor:
        found = torch.zeros(len(values), number, dtype=torch.float64)
        return found.index_add_(1, index, values * weight) / size

    smooth = torch.stack([part.spectrum for part in parts])
    raw = torch.stack([part.raw for part in parts])
    relative = torch.stack([part.relative for part in parts])
    count = torch.tensor([float(data.count_at_zero)], dtype=torch.float64)
    dof = torch.cat((count, size * data.count))
    # white noise and smooth spectrum vary together
    level = torch.cat((smooth[:, :1].square(), averaged(smooth[:, 1:].square())), dim=1)
    error = torch.where(dof > 0, (2.0 * level / dof.clamp(min=1.0)).sqrt(), math.nan)
    return SpectrumBins(
        torch.cat((torch.zeros(1, dtype=torch.float64), averaged(degrees.unsqueeze(0))[0])),
        torch.cat((raw[:, :1], averaged(raw[:, 1:])), dim=1),
        dof,
        error,
        torch.cat((smooth[:, :1], averaged(smooth[:, 1:])), dim=1),
        torch.cat((error[:, :1], averaged(smooth[:, 1:] * relative)), dim=1),
    )


def _moments(spectrum: Tensor, nugget: Tensor, data: Observations) -> tuple[float, float, float, float]:
    """Variance and share of the mean over the sphere, averaged over channels, with standard errors."""
    channels = len(spectrum)
    share = (2.0 * torch.arange(spectrum.shape[1], dtype=torch.float64) + 1.0) / (4.0 * math.pi)
    variance = float((spectrum @ share + nugget).mean())
    counts = torch.full((spectrum.shape[1],), float(data.count), dtype=torch.float64)
    counts[0] = float(data.count_at_zero)
    degrees = 2.0 * torch.arange(spectrum.shape[1], dtype=torch.float64) + 1.0
    each = torch.where(
        counts > 0, 2.0 * (spectrum * share).square() / (degrees * counts.clamp(min=1.0)), math.nan
    )
    white = 2.0 * nugget.square() / (data.count * data.domain.size)
    rest = float(each[:, 1:].sum() + white.sum())
    at_zero = float(each[:, 0].sum())
    error = math.sqrt(at_zero + rest) / channels
    held = float((spectrum[:, 0] * share[0]).mean()) / variance
    slopes = (1.0 - held) / variance, held / variance
    held_error = math.sqrt(slopes[0] ** 2 * at_zero + slopes[1] ** 2 * rest) / channels
    return variance, error, held, held_error


def _check_poles(values: Tensor, sphere: Sphere) -> None:
    if not sphere.poles:
        return
    rows = values[..., [0, -1], :]
    spread = float((rows - rows[..., :1]).abs().max())
    if spread > 1e-5 * float(values.abs().max()):
        raise ValueError(
            f"the values along a pole differ by up to {spread:.3g}, but its {sphere.shape[1]} entries are "
            "one site: set them to their mean, or use Sphere(..., poles=False)"
        )
