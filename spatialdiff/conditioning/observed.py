"""Observations as a list: the place and the channel of each, its value and the variance of its error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.conditioning.law import Law
from spatialdiff.domains import Domain, Sphere


@dataclass(frozen=True)
class Observed:
    """Observations ``y_j`` of channel ``channel[j]`` at ``sites[place[j]]``.

    ``values`` are ``(..., m)``, ``noise`` ``(m,)``; ``index`` says which sites of the domain are ``sites``.
    """

    domain: Domain
    sites: Tensor
    place: Tensor
    channel: Tensor
    values: Tensor
    noise: Tensor
    index: Tensor

    def rows(self, covariates: Tensor) -> Tensor:
        """Covariates ``(*domain.shape, q)`` or ``(n, q)`` at ``sites``."""
        given = covariates.detach().to(device="cpu", dtype=torch.float64)
        shape = tuple(self.domain.shape)
        if tuple(given.shape) == shape:
            given = given.unsqueeze(-1)
        if tuple(given.shape[:-1]) != shape:
            raise ValueError(
                f"covariates drift= need shape (*{shape}, q), one row per observation, got "
                f"{tuple(covariates.shape)}"
            )
        return self.domain.flatten(given.movedim(-1, 0)).T[self.index]


def observed(domain: Domain, values: Tensor, noise: float | Tensor, missing: str, law: Law) -> Observed:
    """Check and list observations ``(..., *domain.shape)``, or ``(..., C, *domain.shape)`` of channels.

    Raises:
        TypeError: values that are not floating point.
        ValueError: shapes, missing values, noise that do not fit; no value; repeated places without noise or
            nugget.
    """
    if missing not in ("raise", "omit"):
        raise ValueError(f"missing must be 'raise' or 'omit', got {missing!r}")
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"values must be a floating-point tensor, got {kind}")
    event = tuple(domain.shape) if law.channels is None else (law.channels, *domain.shape)
    if tuple(values.shape[values.ndim - len(event) :]) != event or values.ndim < len(event):
        raise ValueError(
            f"values need shape (..., {', '.join(map(str, event))}) for {domain}"
            + (f" and {law.channels} channels" if law.channels else "")
            + f", got {tuple(values.shape)}"
        )
    flat = domain.flatten(values.detach().to(device="cpu", dtype=torch.float64))
    if law.channels is None:
        flat = flat.unsqueeze(-2)
    errors = _noise(noise, event, domain, flat.shape[-2:])
    lead = flat.shape[:-2]
    present = torch.isfinite(flat).reshape(-1, *flat.shape[-2:])
    if not bool(present.all()):
        absent = int((~present).sum())
        if missing == "raise":
            raise ValueError(
                f"{absent} of {present.numel()} values are missing or infinite: pass missing='omit' to krige "
                "from the others"
            )
        if bool(torch.isinf(flat).any()):
            raise ValueError("values hold infinities; missing='omit' leaves out NaN only")
        if not bool((present == present[0]).all()):
            raise ValueError(
                "missing='omit' with several data sets needs the same sites missing in all: krige each alone"
            )
    keep = present[0] & ~_repeats(domain)
    if not bool(keep.any()):
        raise ValueError("all values are missing: there is nothing to krige from")
    index = keep.any(dim=0).nonzero().squeeze(-1)
    channel, site = keep[:, index].nonzero(as_tuple=True)
    chosen = flat[..., :, index][..., channel, site].reshape(*lead, -1)
    found = Observed(
        domain, domain.sites()[index], site, channel, chosen, errors[:, index][channel, site], index
    )
    _check_places(found, law)
    return found


def _repeats(domain: Domain) -> Tensor:
    """Entries of a field that say again what another does: a pole of a sphere is one site, ``(n,)``."""
    repeated = torch.zeros(domain.shape, dtype=torch.bool)
    if isinstance(domain, Sphere) and domain.poles:
        repeated[0, 1:] = repeated[-1, 1:] = True
    return domain.flatten(repeated)


def _noise(noise: float | Tensor, event: tuple[int, ...], domain: Domain, shape: torch.Size) -> Tensor:
    """Variances ``(C, n)``."""
    given = torch.as_tensor(noise, dtype=torch.float64).detach().cpu()
    try:
        whole = torch.broadcast_to(given, event)
    except RuntimeError:
        raise ValueError(
            f"noise= must be one variance or one per observation, {event}, got shape {tuple(given.shape)}"
        ) from None
    errors = domain.flatten(whole).reshape(shape)
    if not bool((torch.isfinite(errors) & (errors >= 0)).all()):
        raise ValueError("noise= is a variance: it must not be negative, infinite or NaN")
    return errors


def _check_places(found: Observed, law: Law) -> None:
    """Raise where two observations of a channel at the same coordinates contradict each other."""
    where = torch.cat((found.sites[found.place], found.channel.unsqueeze(1).double()), dim=1)
    _, group = torch.unique(where, dim=0, return_inverse=True)
    m = len(where)
    order = torch.arange(m)
    first = torch.full((int(group.max()) + 1,), m).scatter_reduce(0, group, order, "amin")[group]
    own = found.noise + law.nugget.diagonal()[found.channel]
    bad = (first != order) & (own + own[first] == 0)
    if bool(bad.any()):
        later = int(bad.nonzero()[0])
        pair = int(found.index[found.place[first[later]]]), int(found.index[found.place[later]])
        raise ValueError(
            f"{int(bad.sum())} observations repeat the place of an earlier one (such as sites {pair[0]} and "
            f"{pair[1]}), and nothing tells them apart: average them, give noise= (the variance of "
            "measurement errors), or add a Nugget to the kernel"
        )
