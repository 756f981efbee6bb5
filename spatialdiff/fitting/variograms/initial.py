r"""First guesses from an empirical variogram, without a fit: nugget, sill, range.

The nugget is where the line through the first bins meets distance 0, the sill the mean semivariance of the
farther half of the bins, the range the distance at which the variogram has come up to 95 % of the way from
the one to the other, all weighted by numbers of pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.fitting.variograms.empirical import Variogram


def initial_values(variogram: Variogram) -> dict[str, float]:
    """``{"nugget": …, "sill": …, "range": …}``; the sill includes the nugget, and the range is the
    distance to 95 % of the sill. Of channels the mean of those of their (direct) variograms.
    """
    lags, gamma, counts = direct(variogram)
    found = [_of_one(lags[:, c], gamma[:, c], counts[:, c]) for c in range(lags.shape[1])]
    mean = torch.tensor(found, dtype=torch.float64).mean(dim=0).tolist()
    return dict(zip(("nugget", "sill", "range"), mean, strict=True))


def direct(variogram: Variogram) -> tuple[Tensor, Tensor, Tensor]:
    """Lags, semivariances and counts ``(b, C)`` of the channels one by one."""
    found = []
    for x in (variogram.lags, variogram.gamma, variogram.counts):
        if x.ndim == 3:
            x = x.diagonal(dim1=-2, dim2=-1)
        found.append(x.unsqueeze(-1) if x.ndim == 1 else x)
    return found[0], found[1], found[2]


def _of_one(lags: Tensor, gamma: Tensor, counts: Tensor) -> tuple[float, float, float]:
    kept = (counts > 0) & torch.isfinite(gamma)
    h, g, n = lags[kept], gamma[kept], counts[kept]
    far = h >= h.median()
    sill = float((n[far] * g[far]).sum() / n[far].sum())
    first = min(3, len(h))
    x, y, w = h[:first], g[:first], n[:first]
    centre, level = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    spread = (w * (x - centre).square()).sum()
    slope = float((w * (x - centre) * (y - level)).sum() / spread) if float(spread) > 0.0 else 0.0
    nugget = min(max(float(level) - slope * float(centre), 0.0), 0.9 * sill, float(y.min()))
    above = (g >= nugget + 0.95 * (sill - nugget)).nonzero()
    reach = float(h[int(above[0, 0])]) if len(above) else float(h[-1])
    return nugget, sill, reach
