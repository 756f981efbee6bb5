"""Networks for fields on grids, called as `network(state, t, **condition)`."""

from __future__ import annotations

from spatialdiff.networks.unet import UNet

__all__ = ["UNet"]
