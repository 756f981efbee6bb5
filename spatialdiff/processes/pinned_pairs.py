"""Pairs (start, data) as the ends of a pinned linear process."""

from __future__ import annotations

from torch import Tensor

from spatialdiff.processes.base import Times
from spatialdiff.processes.pinned_law import PinnedLaw


class PairedPinnedLaw(PinnedLaw):
    """The law of pairs (start, data): coefficients given *both* ends, the auxiliary start integrated out.

    Steps, drifts and log-SNR need no more; what needs the mean given x_τ alone raises ``RuntimeError``.
    """

    closed_form = False

    def offset(self, t: Times) -> Tensor:
        raise RuntimeError(
            "the law of a paired bridge given the data alone has no closed form: its mean depends on x0. Use "
            "prediction='data' with preconditioning='none', and the 'bridge' or 'euler_maruyama' solver"
        )

    def offset_rate(self, t: Times) -> Tensor:
        return self.offset(t)
