"""With the exact posterior mean of Gaussian data, samples have the data's spectrum: every solver, at its
stated step count.
"""

import math

import pytest
import torch
from exact_law import FLOWS, exact_final_power, exact_path_law, square_root, state_law

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.sampling import time_grid

SHAPE = (6, 8)
GRID = sd.Grid(SHAPE, periodic=True)
FIELDS = 400
# Steps at which a solver's own error, in the variance of any mode, is below one Monte-Carlo standard error of
# 400 fields (5 to 7 %).
STEPS = {
    "ancestral": 256,
    "bridge": 256,
    "ddim": 192,
    "euler": 192,
    "euler_maruyama": 256,
    "heun": 32,
    "gaussian": 1,
    "gaussian_sde": 1,
    "exponential": 32,
    "predictor_corrector": 192,
    "splitting": 128,
    "adaptive": 8,
}


def torus(kernel):
    return sd.TorusCovariance(kernel, GRID).double().requires_grad_(False)


GAMMAS = {"coloured": torus(Matern(nu=1.5, lengthscale=1.5)), "white": sd.white(GRID).double()}
DATA = torus(Exponential(lengthscale=2.0, variance=1.5))


def oracles(gamma):
    make = sd.oracles.GaussianDenoiser
    return {
        "VP": make(sd.VP(gamma), DATA, mean=0.5),
        "Rectified": make(sd.Rectified(gamma), DATA, mean=0.5),
        "independent bridge": make(sd.BrownianBridge(gamma), DATA, mean=0.5, coupling="independent"),
        "fixed bridge": make(sd.BrownianBridge(gamma), DATA, mean=0.5, coupling="fixed"),
    }


CASES = [
    (colour, law, solver)
    for colour in GAMMAS
    for law in ("VP", "Rectified", "independent bridge", "fixed bridge")
    for solver in STEPS
    if (law != "fixed bridge" or solver not in FLOWS) and (law == "VP" or solver != "splitting")
]


@pytest.mark.parametrize(("colour", "law", "solver"), CASES)
def test_spectrum_at_every_wavenumber(colour, law, solver):
    oracle = oracles(GAMMAS[colour])[law]
    basis = DATA.basis
    options = {"rtol": 1e-3, "atol": 1e-3} if solver == "adaptive" else {}
    fields = sd.sample(
        oracle,
        FIELDS,
        steps=STEPS[solver],
        solver=solver,
        **options,
        generator=torch.Generator().manual_seed(17),
        sigma_min=0.01,
    )
    # a mode stored once for itself and its conjugate has twice the degrees of freedom
    power = basis.analyze(fields - 0.5).abs().square().mean((0, 1)) / DATA.eigenvalues()
    error = torch.sqrt(2.0 / (FIELDS * basis.weights))
    assert ((power - 1.0).abs() < (5.0 + 1.0) * error).all(), float(((power - 1.0).abs() / error).max())
    site = fields.mean((0, 1)) - 0.5
    assert (site.abs() < 5.0 * math.sqrt(float(DATA.variance().max()) / FIELDS) + 0.02).all()


@pytest.mark.parametrize(
    ("law", "solver"),
    # the steps of "adaptive" depend on the state: no linear recursion
    [(law, s) for c, law, s in CASES if c == "coloured" and s != "adaptive"],
)
def test_stated_steps_keep_the_bias_below_the_noise(law, solver):
    """The exact law of the output, by linear recursion: the reason for the step counts above."""
    oracle = oracles(GAMMAS["coloured"])[law]
    gamma = GAMMAS["coloured"].eigenvalues()
    first = oracle.law.sde_start_time if solver == "euler_maruyama" else oracle.law.start_time
    times = time_grid(oracle.law, STEPS[solver], start=first, sigma_min=0.01)
    start = oracle.law.variance(first) * gamma
    if solver.startswith("gaussian"):
        start = start + oracle.law.alpha(first) ** 2 * DATA.eigenvalues()
    power = exact_final_power(oracle, start, times=times, solver=solver) / DATA.eigenvalues()
    assert ((power - 1.0).abs() < torch.sqrt(2.0 / (FIELDS * DATA.basis.weights))).all()


@pytest.mark.parametrize("method", ["torus", "cosine", "dense"])
@pytest.mark.parametrize("solver", ["gaussian", "gaussian_sde"])
@pytest.mark.parametrize("steps", [1, 3])
def test_gaussian_solvers_are_exact_for_gaussian_data(method, solver, steps):
    grid = sd.Grid((3, 4), periodic=method == "torus")
    gamma, data = (
        sd.covariance(kernel, grid, method=method).double().requires_grad_(False)
        for kernel in (Matern(nu=1.5, lengthscale=1.3), Exponential(lengthscale=2.0, variance=1.5))
    )
    mean = torch.randn(grid.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    laws = [sd.VP(gamma), sd.VE(gamma), sd.Rectified(gamma)]
    laws.append(sd.IndependentField(0.7).law(sd.OrnsteinUhlenbeckBridge(gamma)))
    if solver == "gaussian_sde":
        laws.append(sd.FixedPoint(1.5).law(sd.BrownianBridge(gamma)))
    for law in laws:
        oracle = sd.oracles.GaussianDenoiser(law, data, mean=mean)
        at_start = state_law(oracle, torch.tensor(law.start_time, dtype=torch.float64))
        for order in (1, 2) if solver == "gaussian" else (None,):
            options = {} if order is None else {"order": order}
            means, covariances = exact_path_law(
                oracle,
                square_root(at_start[1]),
                mean=at_start[0],
                times=time_grid(law, steps),
                solver=solver,
                **options,
            )
            assert torch.allclose(means[-1], mean.flatten(), atol=1e-9)
            assert torch.allclose(covariances[-1], data.to_dense(), atol=1e-9)


@pytest.mark.parametrize("solver", sorted(set(STEPS) - {"splitting"}))
def test_the_initial_state_is_coloured(solver):
    """Response to unit draws: the covariance of the initial state is that of the process, not the
    identity.
    """
    oracle = oracles(GAMMAS["coloured"])["independent bridge"]
    size = GRID.size
    unit = torch.eye(size, dtype=torch.float64).reshape(size, 1, *SHAPE)
    draws = [unit, *[torch.zeros_like(unit)] * 4]
    path = sd.sample(oracle, size, steps=2, solver=solver, noise=draws, return_path=True)
    assert torch.allclose(
        path[0].flatten(1).T @ path[0].flatten(1), GAMMAS["coloured"].to_dense(), atol=1e-10
    )


def test_an_untrained_wiener_denoiser_is_the_fitted_field():
    """The solver takes the Gaussian from the denoiser: one step from noise to N(μ, C)."""

    class Zero(torch.nn.Module):
        def forward(self, u, t):
            return torch.zeros_like(u)

    gamma = GAMMAS["coloured"]
    denoiser = sd.Denoiser(Zero(), sd.VP(gamma), preconditioning="wiener", data=(0.5, DATA))
    unit = torch.eye(GRID.size, dtype=torch.float64).reshape(-1, 1, *SHAPE)
    fields = sd.sample(denoiser, len(unit), steps=1, solver="gaussian", noise=[unit])
    columns = (fields - 0.5).flatten(1)
    assert torch.allclose(columns.T @ columns, DATA.to_dense(), atol=1e-10)
