"""Time as a vector: e(t) = MLP([t, sin(ω₁t), cos(ω₁t), …]), with log-spaced frequencies ω.

The time a network is given is either the process time (0 to 1) or c_noise = log(σ/α)/4 (−5 to 5). Frequencies
from 0.25 to 32 rad per unit suit both: the slowest tells the ends of the long interval apart, the fastest
resolves 0.05 on the short one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Embed times of shape `(B,)` as vectors of shape `(B, width)`.

    Fourier features as in Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions"
    (2020), section 3, with fixed log-spaced frequencies and the time itself, followed by a two-layer
    perceptron.
    """

    def __init__(
        self, width: int, frequencies: int = 16, slowest: float = 0.25, fastest: float = 32.0
    ) -> None:
        super().__init__()
        omega = torch.logspace(math.log10(slowest), math.log10(fastest), frequencies, dtype=torch.float64)
        self.register_buffer("omega", omega.float(), persistent=False)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * frequencies + 1, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        omega: Tensor = self.get_buffer("omega")
        t = t.to(omega.dtype)[:, None]
        phase = t * omega
        features: Tensor = self.perceptron(torch.cat((t, phase.sin(), phase.cos()), dim=1))
        return features
