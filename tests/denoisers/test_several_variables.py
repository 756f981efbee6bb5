"""Posterior means for states of K variables and for laws of many modes, against dense Bayes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.denoisers import PREDICTIONS, convert
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import ConstantBeta, LinearBeta, LinearDiffusion

SHAPE = (2, 3)
SITES = 6
F64 = torch.float64
BETA = LinearBeta(0.5, 6.0)
TIMES = torch.tensor([0.05, 0.4, 0.95], dtype=F64)


def fields(*lead, seed=0):
    return torch.randn(*lead, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=F64)


def covariance(kernel, method, channels=None):
    grid = sd.Grid(SHAPE, periodic=method == "torus")
    return sd.covariance(kernel, grid, method=method, channels=channels).double().requires_grad_(False)


GAMMA = Matern(nu=1.5, lengthscale=1.5, variance=1.3)
OTHER = Matern(nu=0.5, lengthscale=1.2, variance=0.7)
DATA = Exponential(lengthscale=2.0, variance=2.0)

LAWS = {
    "VP": lambda g: sd.VP(g),
    "Rectified": lambda g: sd.Rectified(g),
    "CLD": lambda g: sd.CLD(g, beta=BETA),
    "MALDA(3)": lambda g: sd.MALDA(g, variables=3, beta=BETA),
    "no stationary law": lambda g: LinearDiffusion(
        g, [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]], beta=ConstantBeta(2.0), initial=[0.4]
    ),
}
MODAL = {
    "one Γ per variable": lambda g: LinearDiffusion(
        (g, covariance(OTHER, g.method)), [[-0.3, 3.0], [-1.0, -2.0]], [[0.4, 0.3], [0.3, 1.0]], beta=BETA
    ),
    "heat dissipation": lambda g: sd.HeatDissipation(g, blur=0.7),
}


def operator(law, matrix):
    """``M ⊗ I`` on the sites as a dense matrix, M ``([modes], I, J)``."""
    rows, columns = matrix.shape[-2:]
    eye = torch.eye(SITES, dtype=F64)
    if law.basis is None:
        return torch.kron(matrix, eye)
    images = [
        [
            law.basis.multiply(eye.reshape(SITES, *SHAPE), matrix[..., i, j]).flatten(1).T
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    return torch.cat([torch.cat(row, 1) for row in images])


def dense_law(law, t):
    """φ ⊗ I ``(K n, n)`` and Σ ⊗ Γ ``(K n, K n)`` at one time."""
    phi, sigma = law.marginal(t)
    gamma = torch.kron(torch.eye(law.variables, dtype=F64), law.covariance.to_dense())
    return operator(law, phi[..., None]), operator(law, sigma) @ gamma


def states(law, x, t, seed=2):
    """States and the noise of each variable behind them."""
    white = torch.randn(
        law.white_shape(len(x), x.shape[1]), generator=torch.Generator().manual_seed(seed), dtype=F64
    )
    return law.perturb(x, t, white=white)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
@pytest.mark.parametrize("name", [*LAWS, *MODAL])
def test_predictions_convert_pairwise(source, target, name):
    """Exactly: all of them at the data and the noise that made the state."""
    gamma = covariance(GAMMA, "torus")
    law = (LAWS | MODAL)[name](gamma)
    x = fields(3, 1, seed=1)
    u, noise = states(law, x, TIMES)
    reduced = law.reduce_noise(noise, TIMES)
    a, b = law.velocity_weights(TIMES)
    known = {
        "data": x,
        "noise": reduced,
        "white_noise": gamma.whiten(reduced),
        "velocity": law.scale(a, x) + law.scale(b, reduced),
        "variable_noise": noise,
    }
    found = convert(known[source], u, TIMES, law, source=source, target=target)
    torch.testing.assert_close(found, known[target], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["VP", "CLD", "MALDA(3)", *MODAL])
def test_conversions_commute_with_expectations(prediction, name):
    """They are linear at fixed u: the mean of two predictions stands for the mean of their data."""
    gamma = covariance(GAMMA, "torus")
    law = (LAWS | MODAL)[name](gamma)
    u = states(law, fields(3, 1, seed=1), TIMES)[0]
    channels = law.variables if prediction == "variable_noise" else 1
    first, second = fields(3, channels, seed=5), fields(3, channels, seed=6)
    x, y, both = (
        convert(p, u, TIMES, law, source=prediction, target="data")
        for p in (first, second, 0.3 * first + 0.7 * second)
    )
    torch.testing.assert_close(both, 0.3 * x + 0.7 * y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["torus", "cosine", "dense"])
@pytest.mark.parametrize("name", LAWS)
def test_gaussian_oracle_is_dense_bayes(method, name):
    """E[x | u] of all K·n values of the state."""
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    law, mean = LAWS[name](gamma), fields(seed=4)
    oracle = sd.oracles.GaussianDenoiser(law, data, mean=mean)
    u = fields(3, law.variables, seed=1)
    found = oracle(u, TIMES)
    for b, t in enumerate(TIMES):
        signal, noise = dense_law(law, t)
        c = data.to_dense()
        state = signal @ c @ signal.T + noise
        centred = u[b].flatten() - signal @ mean.flatten()
        exact = mean.flatten() + c @ signal.T @ torch.linalg.solve(state, centred)
        torch.testing.assert_close(found[b].flatten(), exact, rtol=1e-7, atol=1e-8)
        score = -torch.linalg.solve(state, centred)
        torch.testing.assert_close(
            oracle.score(u[b : b + 1], t).flatten(), score, rtol=1e-6, atol=1e-7 * float(score.abs().max())
        )


@pytest.mark.parametrize("method", ["torus", "cosine"])
@pytest.mark.parametrize("name", MODAL)
def test_gaussian_oracle_of_modal_laws_is_dense_bayes(method, name):
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    law, mean = MODAL[name](gamma), fields(seed=4)
    oracle = sd.oracles.GaussianDenoiser(law, data, mean=mean)
    u = fields(3, law.variables, seed=1)
    found = oracle(u, TIMES)
    for b, t in enumerate(TIMES):
        signal, noise = dense_law(law, t)
        c = data.to_dense()
        centred = u[b].flatten() - signal @ mean.flatten()
        exact = mean.flatten() + c @ signal.T @ torch.linalg.solve(signal @ c @ signal.T + noise, centred)
        torch.testing.assert_close(found[b].flatten(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*LAWS, *MODAL])
def test_empirical_oracle_is_the_softmax_over_whole_states(name):
    """Weights exp(-½ ‖u - φ ⊗ x_i‖²) in the norm of Σ ⊗ Γ, not only of the statistic."""
    gamma = covariance(GAMMA, "torus")
    law = (LAWS | MODAL)[name](gamma)
    data = fields(5, 1, seed=3)
    oracle = sd.oracles.EmpiricalDenoiser(law, data, chunk=2)
    u = states(law, data[:3], TIMES)[0]
    found, entropy = oracle(u, TIMES), oracle.entropy(u, TIMES)
    for b, t in enumerate(TIMES):
        signal, noise = dense_law(law, t)
        away = u[b].flatten() - data.flatten(1) @ signal.T
        distance = (away * torch.linalg.solve(noise, away.T).T).sum(1)
        weights = torch.softmax(-0.5 * distance, 0)
        exact = (weights[:, None] * data.flatten(1)).sum(0)
        torch.testing.assert_close(found[b].flatten(), exact, rtol=1e-6, atol=1e-7)
        sure = -torch.special.xlogy(weights, weights).sum()
        assert math.isclose(float(entropy[b]), float(sure), abs_tol=1e-6)


class Zero(nn.Module):
    """What a U-Net with a zeroed last layer returns before training."""

    def forward(self, u, t, **condition):
        self.seen = (u, t)
        return torch.zeros_like(u[:, :1])


@pytest.mark.parametrize("prediction", ["data", "velocity"])
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in LAWS for method in ("torus", "dense")]
    + [(name, method) for name in MODAL for method in ("torus", "cosine")],
)
def test_wiener_without_training_is_the_gaussian_posterior_mean(name, method, prediction):
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    law, mean = (LAWS | MODAL)[name](gamma), fields(seed=4)
    denoiser = sd.Denoiser(Zero(), law, prediction, "wiener", data=(mean, data))
    u = fields(3, law.variables, seed=1)
    found = denoiser(u, TIMES)
    for b, t in enumerate(TIMES):
        signal, noise = dense_law(law, t)
        c = data.to_dense()
        centred = u[b].flatten() - signal @ mean.flatten()
        exact = mean.flatten() + c @ signal.T @ torch.linalg.solve(signal @ c @ signal.T + noise, centred)
        torch.testing.assert_close(found[b].flatten(), exact, rtol=1e-6, atol=1e-7)
    assert denoiser.network.seen[0].shape == u.shape


@pytest.mark.parametrize("name", ["CLD", "MALDA(3)"])
def test_edm_without_training_is_the_posterior_mean_of_independent_pixels(name):
    """White noise of Γ's mean variance and white data: EDM's own model, for any K."""
    grid = sd.Grid(SHAPE)
    law = LAWS[name](sd.WhiteCovariance(grid, variance=1.3).double())
    data = sd.WhiteCovariance(grid, variance=0.25).double()
    denoiser = sd.Denoiser(Zero(), law, preconditioning="edm", data=(0.4, data))
    c, g = data.to_dense()[0, 0], law.covariance.to_dense()[0, 0]
    u = fields(3, law.variables, seed=1)
    found = denoiser(u, TIMES)
    for b, t in enumerate(TIMES):
        phi, sigma = law.marginal(t)
        gain = c * torch.linalg.solve(c * torch.outer(phi, phi) + g * sigma, phi)
        centred = u[b].reshape(law.variables, -1) - 0.4 * phi[:, None]
        exact = 0.4 + (gain[:, None] * centred).sum(0)
        torch.testing.assert_close(found[b].flatten(), exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("preconditioning", ["edm", "wiener"])
@pytest.mark.parametrize("name", ["VP", "CLD", "MALDA(3)", "one Γ per variable"])
def test_target_is_what_decodes_to_the_data(preconditioning, name):
    gamma, data = covariance(GAMMA, "torus"), covariance(DATA, "torus")
    law = (LAWS | MODAL)[name](gamma)
    for prediction in ("data", "noise", "white_noise", "velocity"):
        denoiser = sd.Denoiser(Zero(), law, prediction, preconditioning, data=(0.5, data))
        x = fields(3, 1, seed=1)
        u, noise = states(law, x, TIMES)
        target = denoiser.target(x, noise, TIMES)
        torch.testing.assert_close(denoiser.decode(target, u, TIMES), x, rtol=1e-6, atol=1e-7)
        # the noise of the statistic alone is as good
        alone = denoiser.target(x, law.reduce_noise(noise, TIMES), TIMES)
        torch.testing.assert_close(alone, target, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["VP", "CLD", "MALDA(3)", "one Γ per variable"])
def test_unscaled_targets_decode_to_the_data(name):
    gamma = covariance(GAMMA, "torus")
    law = (LAWS | MODAL)[name](gamma)
    x = fields(3, 1, seed=1)
    u, noise = states(law, x, TIMES)
    for prediction in PREDICTIONS:
        denoiser = sd.Denoiser(Zero(), law, prediction)
        target = denoiser.target(x, noise, TIMES)
        channels = law.variables if prediction == "variable_noise" else 1
        assert target.shape == (3, channels, *SHAPE)
        torch.testing.assert_close(denoiser.decode(target, u, TIMES), x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["torus", "dense"])
@pytest.mark.parametrize("name", ["CLD", "MALDA(3)"])
def test_wiener_shows_every_variable_at_the_same_scale(method, name):
    """Under N(0, C) each variable that the network sees is white by itself (tint = 0), at every time."""
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    law = LAWS[name](gamma)
    denoiser = sd.Denoiser(Zero(), law, preconditioning="wiener", data=data, tint=0.0)
    size = law.variables * SITES
    basis = torch.eye(size, dtype=F64).reshape(size, law.variables, *SHAPE)
    for t in TIMES:
        signal, noise = dense_law(law, t)
        state = signal @ data.to_dense() @ signal.T + noise
        denoiser.predict(basis, t)
        to_input = denoiser.network.seen[0].flatten(1).T
        shown = to_input @ state @ to_input.T
        for j in range(law.variables):
            block = shown[j * SITES : (j + 1) * SITES, j * SITES : (j + 1) * SITES]
            torch.testing.assert_close(block, torch.eye(SITES, dtype=F64), rtol=0, atol=1e-7)
        # and nothing of the state is lost
        assert int(torch.linalg.matrix_rank(to_input)) == size


def test_states_of_another_number_of_variables_are_refused():
    gamma, data = covariance(GAMMA, "torus"), covariance(DATA, "torus")
    oracle = sd.oracles.GaussianDenoiser(sd.CLD(gamma), data)
    with pytest.raises(ValueError, match=r"needs \(batch, 2, 2, 3\): 1 channel\(s\) of each of 2 variables"):
        oracle(fields(3, 1), TIMES)
    with pytest.raises(ValueError, match="prediction='variable_noise' goes with preconditioning='none'"):
        sd.Denoiser(Zero(), sd.CLD(gamma), "variable_noise", "wiener", data=data)
    whole = sd.Denoiser(Zero(), sd.CLD(gamma), "variable_noise")
    with pytest.raises(ValueError, match=r"must return 2 channel\(s\) on the same grid"):
        whole(fields(3, 2), TIMES)
    dense = sd.covariance(DATA, sd.Grid(SHAPE, periodic=True), method="dense").double()
    modal = sd.oracles.GaussianDenoiser(MODAL["one Γ per variable"](gamma), dense)
    with pytest.raises(ValueError, match="coefficients for the modes of"):
        modal(fields(3, 2), TIMES)


def test_float32_and_gradients_for_several_variables():
    grid = sd.Grid(SHAPE, periodic=True)
    gamma = sd.covariance(Matern(nu=1.5, lengthscale=1.5), grid).double()
    data = sd.covariance(Exponential(lengthscale=2.0), grid).double()
    oracle = sd.oracles.GaussianDenoiser(sd.MALDA(gamma, beta=BETA), data)
    u = fields(3, 3, seed=1)
    exact = oracle(u, TIMES)
    for kernel in (gamma.kernel, data.kernel):
        gradients = torch.autograd.grad(exact.square().sum(), list(kernel.parameters()), retain_graph=True)
        assert all(bool(torch.isfinite(g).all()) and float(g.abs().max()) > 1e-6 for g in gradients)
    single = oracle(u.float(), TIMES.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-4)
