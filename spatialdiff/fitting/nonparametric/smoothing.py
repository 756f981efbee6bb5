r"""A smooth spectrum from the power in each mode.

The power of mode :math:`k`, averaged over :math:`\nu` independent replicates, is
:math:`\gamma_k \chi^2_\nu/\nu`. Modes are gathered into narrow bins of wavenumber :math:`|k|` (:math:`\nu_b`
replicated modes, mean power :math:`P_b` at :math:`x_b = \log_2 |k|`), and :math:`\log\gamma` at :math:`x` is
the :math:`a` of the line that maximises the local Whittle likelihood

.. math:: -\sum_b K\!\left(\frac{x_b - x}{h}\right) \nu_b \left[\eta_b + P_b e^{-\eta_b}\right],
          \qquad \eta_b = a + b\,(x_b - x),

with a Gaussian :math:`K` of standard deviation :math:`h` = ``smoothing`` octaves, widened where needed to
hold at least 50 replicated modes (a 20 % error): a spectrum from few fields is smooth, and one from many
keeps what the data show. It is positive everywhere, and scaled so that the total power is that of the data.

Without isotropy, the ratio of the power to the isotropic spectrum is averaged over neighbouring modes
(Gaussian weights in mode number) and multiplied back: smoothing after prewhitening, so that steep spectra do
not leak.

Sources: Fan & Kreutzberger 1998 (local likelihood of the spectrum); Percival & Walden 1993 (prewhitening).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DOF = 50.0
_SCORING = 100


@dataclass(frozen=True)
class SpectrumBins:
    """The data's radial spectrum and the smooth one through it, one row per bin of wavenumber.

    ``wavenumber`` in cycles per unit length, ``power`` the mean power of the bin's modes, ``standard_error``
    of ``power`` from ``dof`` (replicates times modes, chi-square), ``smooth`` the fitted spectrum averaged
    over the same modes, and ``smooth_standard_error``. The first row is the domain mean (wavenumber 0). Shape
    of each: ``(C, bins)``, ``wavenumber`` ``(bins,)``.
    """

    wavenumber: Tensor
    power: Tensor
    dof: Tensor
    standard_error: Tensor
    smooth: Tensor
    smooth_standard_error: Tensor


@dataclass(frozen=True)
class RadialSmooth:
    """Result of :func:`smooth_radial`: the spectrum at each mode, its relative error, and the effective
    number of parameters."""

    spectrum: Tensor
    relative_error: Tensor
    parameters: float


def bin_index(wavenumbers: Tensor, width: float) -> tuple[Tensor, int]:
    """Bins of ``width`` octaves of positive ``wavenumbers`` (1-d), numbered from 0 without gaps; a single |k|
    is never split."""
    octave = torch.log2(wavenumbers / wavenumbers.min())
    raw = torch.floor(octave / width + 1e-6).long()
    used, index = torch.unique(raw, return_inverse=True)
    return index, len(used)


def smooth_radial(
    power: Tensor, wavenumbers: Tensor, dof: Tensor, smoothing: float, enough: float = DOF
) -> RadialSmooth:
    """Local linear likelihood of log power in log wavenumber, by Fisher scoring; see the module's text.

    Args:
        power: mean power per mode, ``(m,)``, not all zero.
        wavenumbers: ``|k| > 0`` per mode, ``(m,)``.
        dof: replicates times multiplicity of each mode, ``(m,)``.
        smoothing: standard deviation of the weights in octaves.
        enough: widen the weights until they hold this many degrees of freedom.
    """
    index, number = bin_index(wavenumbers, smoothing / 2.0)
    weight = torch.zeros(number, dtype=torch.float64).index_add_(0, index, dof)
    binned = torch.zeros(number, dtype=torch.float64).index_add_(0, index, dof * power) / weight
    centre = (
        torch.zeros(number, dtype=torch.float64).index_add_(0, index, dof * torch.log2(wavenumbers)) / weight
    )
    unique, inverse = torch.unique(torch.log2(wavenumbers), return_inverse=True)
    distance = unique[:, None] - centre[None, :]
    width = _local_width(distance, weight, smoothing, enough)
    kernel = torch.exp(-0.5 * (distance / width[:, None]).square()) * weight
    total = kernel.sum(dim=1)
    mean_x = (kernel * centre).sum(dim=1) / total
    offset = centre[None, :] - mean_x[:, None]
    spread = (kernel * offset.square()).sum(dim=1)
    # a single bin in reach has no slope: the ridge makes it zero
    slope = kernel * offset / (spread + 1e-6 * total * smoothing**2)[:, None]
    hat = kernel / total[:, None] + (unique - mean_x)[:, None] * slope
    # exact zeros (a mode that a field cannot have) count as far below everything else
    target = binned.clamp(min=1e-30 * float(binned.amax()))
    level, tilt = hat @ target.log(), slope @ target.log()
    for _ in range(_SCORING):
        # clamped, since a step from far off overshoots
        ratio = (target * torch.exp(-(level[:, None] - tilt[:, None] * distance))).clamp(max=3.0) - 1.0
        step = (hat * ratio).sum(dim=1)
        level, tilt = level + step, tilt + (slope * ratio).sum(dim=1)
        if float(step.abs().amax()) < 1e-10:
            break
    variance = (hat.square() * 2.0 / weight).sum(dim=1)
    nearest = distance.abs().argmin(dim=0)
    own = hat[nearest, torch.arange(number)]
    return RadialSmooth(level.exp()[inverse], variance.sqrt()[inverse], float(own.sum()))


def _local_width(distance: Tensor, weight: Tensor, smoothing: float, enough: float) -> Tensor:
    width = torch.full((len(distance),), smoothing, dtype=torch.float64)
    enough = min(enough, 0.5 * float(weight.sum()))
    for _ in range(40):
        held = (torch.exp(-0.5 * (distance / width[:, None]).square()) * weight).sum(dim=1)
        short = held < enough
        if not bool(short.any()):
            break
        width = torch.where(short, width * 1.2, width)
    return width


def smooth_ratio(ratio: Tensor, weight: Tensor, modes: float, circular: Sequence[bool]) -> Tensor:
    """Weighted Gaussian average of ``ratio`` over neighbouring modes, axis by axis (``modes``: standard
    deviation in mode number).

    Args:
        ratio: power over reference spectrum on the full set of modes, ``(*modes)``.
        weight: 0 where a mode is left out (the domain mean), 1 elsewhere.
        modes: standard deviation.
        circular: per axis, whether mode numbers wrap around (Fourier); otherwise they reflect at both ends
            (cosine).
    """
    top, bottom = ratio * weight, weight.clone()
    for axis, wraps in enumerate(circular):
        n = ratio.shape[axis]
        i = torch.arange(n, dtype=torch.float64)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        reach = math.ceil(5.0 * modes / n) + 1
        for turn in range(-reach, reach + 1):
            period = n if wraps else 2 * n
            matrix += torch.exp(-0.5 * ((i[:, None] - i[None, :] + turn * period) / modes).square())
            if not wraps:
                # a cosine spectrum is even: mode -j is mode j, and 0 is its own image
                image = torch.exp(-0.5 * ((i[:, None] + i[None, :] + turn * period) / modes).square())
                matrix += image * (i > 0)
        top = torch.tensordot(top, matrix, dims=([axis], [1])).movedim(-1, axis)
        bottom = torch.tensordot(bottom, matrix, dims=([axis], [1])).movedim(-1, axis)
    return top / bottom
