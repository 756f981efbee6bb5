r"""Replicated fields and their mean: what every likelihood starts from.

Fields :math:`x^{(1)}, \dots, x^{(N)}`, each with ``C`` channels on a grid of ``n`` sites, are written
:math:`x^{(i)} = \mu + e^{(i)}`, :math:`e^{(i)} \sim N(0, \Gamma)` independent. The mean :math:`\mu` is zero,
known, one number per channel, or one number per channel and site; the last two are removed here by their
averages, and the number of replicates that are left for the covariance is

=============  ===========================  ===========================
mean           at the domain mean (k = 0)   everywhere else
=============  ===========================  ===========================
none, known    N                            N
``constant``   N - 1                        N
``field``      N - 1                        N - 1
=============  ===========================  ===========================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.domains import Grid


@dataclass(frozen=True)
class Observations:
    """Centred replicates: ``values`` of shape ``(N, C, *grid)`` (float64, on the CPU) and the mean that was
    taken off.

    ``mean`` broadcasts to one field of the caller's layout, with or without its channel axis. ``count`` is
    the number of replicates that carry information on the covariance, ``count_at_zero`` the same for the mean
    over the domain.
    """

    grid: Grid
    values: Tensor
    mean: Tensor
    mean_model: str
    has_channels: bool
    count: int
    count_at_zero: int
    resolution: float

    @property
    def total(self) -> int:
        """Number ``N`` of fields given."""
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        """Number ``C`` of channels (1 where the fields have no channel axis)."""
        return self.values.shape[1]

    @property
    def covariance_channels(self) -> int | None:
        """The ``channels`` argument of a covariance for these fields: none for a single channel, so that it
        broadcasts."""
        return self.channels if self.channels > 1 else None

    @property
    def n_values(self) -> int:
        """Number of values, ``N C n``."""
        return self.values.numel()

    @property
    def mean_parameters(self) -> int:
        """Number of mean parameters that were estimated and count in AIC and BIC."""
        return self.channels if self.mean_model == "constant" else 0

    def variance(self) -> Tensor:
        """Variance of each channel about the mean, averaged over sites, shape ``(C,)``."""
        axes = [0, *range(2, self.values.ndim)]
        return self.values.square().mean(dim=axes) * self.total / self.count

    def domain_means(self) -> Tensor:
        """Mean of each centred field over the domain, shape ``(N, C)``."""
        return self.values.flatten(2).mean(-1)


def observe(fields: Tensor, grid: Grid, mean: str | Tensor | None) -> Observations:
    """Check ``fields``, take their mean off, and say what is left to estimate a covariance from.

    Args:
        fields: ``(N, *grid)`` or ``(N, C, *grid)``.
        grid: the domain.
        mean: ``None`` (zero), ``"constant"`` (one number per channel), ``"field"`` (one per channel and site)
            or a tensor that broadcasts to one field.

    Raises:
        TypeError: for fields that are not a floating-point tensor.
        ValueError: for a wrong shape, no data, missing values, constant fields, or too few fields for the
            mean.
    """
    _check_fields(fields, grid)
    has_channels = fields.ndim == grid.ndim + 2
    values = fields.detach().to(device="cpu", dtype=torch.float64)
    values = values if has_channels else values.unsqueeze(1)
    total = values.shape[0]
    event = tuple(values.shape[1:]) if has_channels else grid.shape
    count, count_at_zero = total, total
    if isinstance(mean, Tensor):
        known = mean.detach().to(device="cpu", dtype=torch.float64)
        try:
            torch.broadcast_to(known, event)
        except RuntimeError:
            raise ValueError(
                f"mean has shape {tuple(mean.shape)}, which does not broadcast to one field of shape "
                f"{tuple(event)}"
            ) from None
        offset, model = known, "known"
        centred = values - (known if has_channels else torch.broadcast_to(known, event))
    elif mean is None:
        offset, model, centred = torch.zeros((), dtype=torch.float64), "none", values.clone()
    elif mean == "constant":
        site_axes = [0, *range(2, values.ndim)]
        estimate = values.mean(dim=site_axes, keepdim=True)[0]
        offset = estimate if has_channels else estimate.reshape(())
        model, centred, count_at_zero = "constant", values - estimate, total - 1
    elif mean == "field":
        if total < 2:
            raise ValueError(
                "mean='field' estimates one mean per site and leaves nothing of a single field: give at "
                "least two fields, "
                "or use mean='constant'"
            )
        estimate = values.mean(dim=0)
        offset = estimate if has_channels else estimate[0]
        model, centred, count, count_at_zero = "field", values - estimate, total - 1, total - 1
    else:
        raise ValueError(f"mean must be None, 'constant', 'field' or a tensor, got {mean!r}")
    scale = values.abs().amax()
    spread = centred.flatten(2).std(dim=(0, 2), correction=0)
    flat = [c for c in range(values.shape[1]) if spread[c] <= 1e-12 * scale]
    if flat:
        where = f"channel {flat[0]} of the fields is" if has_channels else "the fields are"
        raise ValueError(f"{where} constant about the mean: there is no variation to fit a covariance to")
    resolution = torch.finfo(fields.dtype).eps
    return Observations(grid, centred, offset, model, has_channels, count, count_at_zero, resolution)


def _check_fields(fields: Tensor, grid: Grid) -> None:
    if not isinstance(fields, Tensor):
        raise TypeError(
            f"fields must be a torch.Tensor of shape (N, *grid) or (N, C, *grid), got {type(fields).__name__}"
        )
    if not fields.is_floating_point():
        raise TypeError(f"fields must be floating point, got {fields.dtype}: convert with .double()")
    if fields.ndim not in (grid.ndim + 1, grid.ndim + 2) or tuple(fields.shape[-grid.ndim :]) != tuple(
        grid.shape
    ):
        raise ValueError(
            f"fields have shape {tuple(fields.shape)}; a grid of shape {tuple(grid.shape)} needs (N, *grid) "
            "or (N, C, *grid)"
            + (
                " (a single field needs a leading axis: fields[None])"
                if tuple(fields.shape) == tuple(grid.shape)
                else ""
            )
        )
    if fields.numel() == 0:
        raise ValueError(
            f"fields are empty: shape {tuple(fields.shape)}; at least one field with one channel is needed"
        )
    missing = ~torch.isfinite(fields)
    number = int(missing.sum())
    if number:
        places = [tuple(int(i) for i in place) for place in missing.nonzero()[:3]]
        affected = int(missing.flatten(1).any(1).sum())
        raise ValueError(
            f"fields hold {number} missing or infinite values of {fields.numel()}, in {affected} of "
            f"{fields.shape[0]} fields, "
            f"the first at {', '.join(map(str, places))}: drop these fields or fill the values before fitting"
        )
