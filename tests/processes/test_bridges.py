"""Every bridge against the shared case, and the limits that tie them to straight lines and to each other."""

from __future__ import annotations

import math

import pytest
import torch
from bridge_case import F64, BridgeCase
from moments import dense_gamma, normal

from spatialdiff.processes import (
    Bridge,
    BrownianBridge,
    ConstantBeta,
    LinearBeta,
    OrnsteinUhlenbeckBridge,
    ReversedBeta,
)


class TestBrownianBridge(BridgeCase):
    def make(self, gamma):
        return BrownianBridge(gamma, horizon=1.5)

    def drift_and_rate(self, t):
        return 0.0, 1.0

    def test_textbook_form(self):
        t = torch.tensor([0.3, 1.2], dtype=F64)
        c_0, c_1, v = self.make(dense_gamma()).coefficients(t)
        torch.testing.assert_close(c_1, t / 1.5, rtol=1e-14, atol=0)
        torch.testing.assert_close(c_0, 1.0 - t / 1.5, rtol=1e-14, atol=0)
        torch.testing.assert_close(v, t * (1.5 - t) / 1.5, rtol=1e-14, atol=0)


class TestBrownianBridgeWithASchedule(BridgeCase):
    def make(self, gamma):
        return BrownianBridge(gamma, schedule=LinearBeta(3.0, 0.2, horizon=2.0))

    def drift_and_rate(self, t):
        return 0.0, 3.0 - 1.4 * t


class TestOrnsteinUhlenbeckBridge(BridgeCase):
    def make(self, gamma):
        return OrnsteinUhlenbeckBridge(gamma, horizon=2.0)

    def drift_and_rate(self, t):
        return -0.5, 1.0


class TestRepellingBridge(BridgeCase):
    def make(self, gamma):
        return OrnsteinUhlenbeckBridge(gamma, rate=-0.7)

    def drift_and_rate(self, t):
        return 0.7, 1.0


class TestReversedVPBridge(BridgeCase):
    def make(self, gamma):
        return Bridge(gamma, ReversedBeta(LinearBeta(0.1, 4.0)), rate=0.5)

    def drift_and_rate(self, t):
        beta = 0.1 + 3.9 * (1.0 - t)
        return -0.5 * beta, beta


def test_small_beta_is_the_straight_line():
    bridge = BrownianBridge(dense_gamma(), schedule=ConstantBeta(1e-12, horizon=2.0))
    x0, x1, t = (
        normal(3, 1, 2, 3, seed=1),
        normal(3, 1, 2, 3, seed=2),
        torch.tensor([0.2, 1.0, 1.7], dtype=F64),
    )
    weight = (t / 2.0).reshape(3, 1, 1, 1)
    line = (1.0 - weight) * x0 + weight * x1
    state, noise = bridge.perturb(x0, x1, t, white=normal(3, 1, 2, 3, seed=3))
    torch.testing.assert_close(state, line, rtol=0, atol=5e-6)
    spread = (1e-12 * t * (2.0 - t) / 2.0).sqrt().reshape(3, 1, 1, 1)
    torch.testing.assert_close(state - line, spread * noise, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(bridge.drift_target(line, x1, t), 0.5 * (x1 - x0), rtol=1e-9, atol=1e-9)


def test_opposite_rates_have_the_same_bridge():
    """Ornstein–Uhlenbeck bridges depend on |rate| only, though their references do not."""
    t = torch.linspace(0, 1, 9, dtype=F64)
    attract = OrnsteinUhlenbeckBridge(dense_gamma(), rate=0.9)
    repel = OrnsteinUhlenbeckBridge(dense_gamma(), rate=-0.9)
    for a, b in zip(attract.coefficients(t), repel.coefficients(t), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
    x, y = normal(9, 1, 2, 3, seed=1)[:8], normal(9, 1, 2, 3, seed=2)[:8]
    torch.testing.assert_close(attract.drift_target(x, y, t[:8]), repel.drift_target(x, y, t[:8]))


def test_vanishing_rate_is_brownian():
    t = torch.linspace(0, 1, 9, dtype=F64)
    bridges = OrnsteinUhlenbeckBridge(dense_gamma(), rate=1e-10), BrownianBridge(dense_gamma())
    for a, b in zip(*(bridge.coefficients(t) for bridge in bridges), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_refuses_a_rate_that_is_not_finite(rate):
    with pytest.raises(ValueError, match="rate was"):
        OrnsteinUhlenbeckBridge(dense_gamma(), rate=rate)
