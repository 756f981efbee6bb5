"""Bridges from kriged fields: for Gaussian data they end in the conditional law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.conditioning.coupling import KrigedStart
from spatialdiff.conditioning.kriging import Kriging
from spatialdiff.conditioning.messages import KrigingWarning
from spatialdiff.kernels import Matern

GRID = sd.Grid((8, 7), 1.0)
KERNEL = Matern(nu=1.5, lengthscale=2.0)
MASK = torch.zeros(8, 7, dtype=torch.bool)
MASK[[1, 5, 6, 2], [1, 3, 6, 5]] = True


def fields(n, seed=0):
    gamma = sd.covariance(KERNEL, GRID, method="dense").double().requires_grad_(False)
    return gamma.sample((n, 1), generator=torch.Generator().manual_seed(seed))


def conditional(mask=MASK):
    k = sd.covariance(KERNEL, GRID, method="dense").to_dense().detach()
    o = mask.flatten()
    weights = torch.linalg.solve(k[o][:, o], k[o])
    return weights, k - k[:, o] @ weights


class State(nn.Module):
    """The posterior mean of a Brownian bridge whose ends differ by N(0, Γ): the state."""

    def forward(self, state, t, **condition):
        return state


def test_the_start_is_the_kriged_field_and_gamma_the_kriging_covariance():
    start = KrigedStart(KERNEL, GRID, MASK, drift=None)
    x1 = fields(3)
    same, x0 = start.pair(x1)
    weights, covariance = conditional()
    assert same is x1
    wanted = x1.flatten(1)[:, MASK.flatten()] @ weights
    assert torch.allclose(x0.flatten(1), wanted, rtol=0, atol=1e-9)
    assert torch.equal(x0[:, :, MASK], x1[:, :, MASK])
    gamma = start.covariance().double()
    assert torch.allclose(gamma.to_dense(), covariance, rtol=0, atol=1e-10)
    # color is a root of the same matrix
    white = torch.eye(gamma.factor_shape.numel(), dtype=torch.float64)
    rows = gamma.color(white).flatten(1)
    assert torch.allclose(rows.T @ rows, covariance, rtol=0, atol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_start_agrees_with_kriging_with_a_drift(noise):
    start = KrigedStart(KERNEL, GRID, MASK, drift="constant", noise=noise)
    x1 = fields(1)
    x0 = start.start(x1, generator=torch.Generator().manual_seed(1))
    error = torch.randn(x1.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (x1 + noise**0.5 * error)[0, 0, MASK] if noise else x1[0, 0, MASK]
    kriging = Kriging(KERNEL, GRID.coordinates()[MASK], y, drift="constant", noise=noise)
    with pytest.warns(KrigingWarning, match="outside"):
        kriged = kriging.predict(GRID)
    assert torch.allclose(x0[0, 0], kriged.mean, rtol=0, atol=1e-8)


def test_gaussian_data_given_the_kriged_field_end_in_the_conditional_law():
    """X_τ ~ N(kriged field, kriging covariance), from the state itself as the posterior mean."""
    start = KrigedStart(KERNEL, GRID, MASK, drift=None)
    bridge = sd.BrownianBridge(start.covariance().double())
    denoiser = sd.Denoiser(State(), bridge, coupling="paired")
    x0 = start.start(fields(1))
    count, last = 20_000, 0.9999
    drawn = sd.sample(
        denoiser,
        count,
        start=x0.expand(count, -1, -1, -1),
        solver="euler_maruyama",
        grid=torch.tensor([0.0, 0.3, 0.6, last, 1.0]),
        steps=4,
        generator=torch.Generator().manual_seed(2),
    )
    # the data are honoured by every draw
    assert torch.allclose(drawn[:, :, MASK], x0[:, :, MASK].expand(count, -1, -1), rtol=0, atol=1e-6)
    covariance = last * conditional()[1]
    rest = (drawn - x0).flatten(1)
    found = rest.T @ rest / count
    variance = covariance.diagonal().clamp_min(0)
    error = ((variance[:, None] * variance + covariance.square()) / count).sqrt() + 1e-9
    assert float(((found - covariance) / error).abs().max()) < 4.5
    assert float((rest.mean(0).abs() / ((variance / count).sqrt() + 1e-9)).max()) < 4.5


def test_the_state_is_the_posterior_mean():
    """No linear function of state and start predicts the end of these bridges better than the state."""
    start = KrigedStart(KERNEL, GRID, MASK, drift=None)
    bridge = sd.BrownianBridge(start.covariance().double())
    x1, x0 = start.pair(fields(4000))
    t = 0.4
    state, _ = bridge.perturb(x0, x1, t, generator=torch.Generator().manual_seed(3))
    free = ~MASK.flatten()
    u, target = (state - x0).flatten(1)[:, free], (x1 - x0).flatten(1)[:, free]
    # Cov(x1 - x0, X_t - x0) = t Γ and Cov(X_t - x0) = t Γ, so that the regression is the identity
    covariance = conditional()[1][free][:, free]
    for found in (u.T @ u / 4000, target.T @ u / 4000):
        scale = (t * covariance.diagonal()).clamp_min(1e-12)
        error = ((scale[:, None] * covariance.diagonal() + (t * covariance).square()) / 4000).sqrt()
        assert float(((found - t * covariance) / error).abs().max()) < 5.0


def test_a_bridge_mixture_trains_on_the_pairs():
    """A network that starts from nothing learns the state; a few steps on the CPU."""
    start = KrigedStart(KERNEL, GRID, MASK, drift=None)
    bridge = sd.BrownianBridge(start.covariance())

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_state = nn.Parameter(torch.zeros(()))
            self.of_start = nn.Parameter(torch.zeros(()))

        def forward(self, state, t, start):
            return self.of_state * state + self.of_start * start

    network = Gain()
    objective = sd.BridgeMixture(
        sd.Denoiser(network, bridge), coupling="paired", times="uniform", condition_on_start=True
    )
    data = start.dataset(fields(256).float())
    x1, x0 = (torch.stack(part) for part in zip(*(data[i] for i in range(256)), strict=True))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(4)
    losses = []
    for _ in range(120):
        loss = objective((x1, x0), generator=generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert abs(float(network.of_state.detach()) - 1) < 0.1
    assert abs(float(network.of_start.detach())) < 0.1
    drawn = sd.sample(objective.denoiser, 3, start=x0[:3], steps=8, generator=generator)
    assert drawn.shape == x1[:3].shape


def test_cells_at_random_and_conditional_simulations_as_starts():
    start = KrigedStart(KERNEL, GRID, 6, simulate=True)
    x1 = fields(5)
    mask = start.mask(5, generator=torch.Generator().manual_seed(9))
    assert torch.equal(mask.flatten(1).sum(1), torch.full((5,), 6))
    x0 = start.start(x1, generator=torch.Generator().manual_seed(9))
    assert torch.equal(x0[:, 0][mask], x1[:, 0][mask])
    assert float((x0 - x1)[:, 0][~mask].abs().min()) > 0
    data = start.dataset(x1, seed=1)
    assert torch.equal(data[2][1], data[2][1])
    assert not torch.equal(data[2][1], start.dataset(x1, seed=2)[2][1])
    with pytest.raises(ValueError, match="drawn at random"):
        start.covariance()
    wrapped = sd.Grid((8, 7), 1.0, periodic=True)
    kriged = KrigedStart(KERNEL, wrapped, MASK).start(x1)
    assert torch.equal(kriged[:, :, MASK], x1[:, :, MASK])
    gamma = KrigedStart(KERNEL, wrapped, MASK, drift=None).covariance()
    k = sd.covariance(KERNEL, wrapped, method="dense").to_dense().detach()
    o = MASK.flatten()
    wanted = k - k[:, o] @ torch.linalg.solve(k[o][:, o], k[o])
    assert torch.allclose(gamma.to_dense(), wanted, rtol=0, atol=1e-10)


def test_a_conditional_field_as_the_starting_law():
    start = KrigedStart(KERNEL, GRID, MASK, drift=None)
    gamma = start.covariance().double()
    kriged = start.start(fields(1))[0]
    bridge = sd.BrownianBridge(gamma)
    denoiser = sd.Denoiser(State(), bridge, coupling=sd.IndependentField(0.8, mean=kriged))
    count = 20_000
    x0 = denoiser.law.start(count, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    variance = 0.64 * gamma.variance()
    found = (x0 - kriged).square().mean(0)[0]
    assert float(((found - variance) / (variance * (2 / count) ** 0.5 + 1e-9)).abs().max()) < 4.5
    assert torch.allclose(x0[:, 0, MASK], kriged[0, MASK].expand(count, -1), rtol=0, atol=1e-9)
    # closed form: mean c_1 x1 + c_0 μ, variance (c_0² s² + v) Γ
    x1 = fields(2, seed=8)
    mean = denoiser.law.mean(x1, 0.25)
    assert torch.allclose(mean, 0.25 * x1 + 0.75 * kriged)
    assert float(denoiser.law.sigma(0.25)) ** 2 == pytest.approx(0.75**2 * 0.64 + 0.25 * 0.75)
    drawn = sd.IndependentField(mean=kriged).draw(bridge, x1, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == x1.shape
    with pytest.raises(ValueError, match="draws x0 itself"):
        sd.IndependentField(mean=kriged).draw(bridge, x1, x1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KrigedStart(KERNEL, GRID, 0), ValueError, "needed some"),
        (lambda: KrigedStart(KERNEL, GRID, 0.5), TypeError, "bool mask or a number"),
        (lambda: KrigedStart(KERNEL, GRID, MASK[1:]), ValueError, "mask of cells"),
        (lambda: KrigedStart(KERNEL, GRID, MASK).start(torch.zeros(2, 8, 7)), ValueError, "data need shape"),
        (lambda: sd.IndependentField(mean=torch.full((8, 7), float("nan"))), ValueError, "not finite"),
        (lambda: sd.IndependentField(0.0, torch.zeros(8, 7)), ValueError, "positive"),
        (
            lambda: sd.IndependentField(mean=torch.zeros(7, 7)).law(
                sd.BrownianBridge(sd.covariance(KERNEL, GRID))
            ),
            ValueError,
            "must be a number or a field \\(\\*grid\\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
