"""Measured orders in law with several variables, coefficients per mode, and pinned bridges; no Monte Carlo.

The whole state is compared, auxiliary variables included.
"""

import pytest
import torch
from exact_law import FLOWS, exact_path_law, square_root, state_law
from test_orders import fitted_order, times_to

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import ConstantBeta
from spatialdiff.processes.pinned import LinearBridge

GRID = sd.Grid((4,), periodic=True)


def torus(kernel):
    return sd.TorusCovariance(kernel, GRID).double().requires_grad_(False)


GAMMA = torus(Matern(nu=1.5, lengthscale=0.8))
DATA = torus(Exponential(lengthscale=1.5, variance=1.5))
MISFIT = (0.3, torus(Matern(nu=0.5, lengthscale=0.7, variance=0.6)))
MEAN = torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=torch.float64)


def random_process():
    """K = 3, a full random drift and noise: nothing vanishes."""
    generator = torch.Generator().manual_seed(5)
    draw = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    skew, root = draw[0] - draw[0].T, draw[1]
    return sd.LinearDiffusion.from_stationary(
        GAMMA,
        0.7 * skew,
        0.4 * root @ root.T + 0.2 * torch.eye(3, dtype=torch.float64),
        torch.diag(torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64)),
        beta=ConstantBeta(1.5),
    )


def modal_process():
    """Mode k runs at its own speed."""
    speed = 1.0 + 0.5 * torch.arange(3, dtype=torch.float64)[:, None, None]
    drift = torch.tensor([[0.0, 2.0], [-0.5, -2.0]], dtype=torch.float64)
    noise = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    return sd.LinearDiffusion(GAMMA, speed * drift, speed * noise, beta=ConstantBeta(1.5))


CLD = sd.CLD(GAMMA, beta=ConstantBeta(1.0))
LAWS = {
    "CLD": CLD,
    "random K=3": random_process(),
    "modal K=2": modal_process(),
    "pinned CLD": sd.IndependentField(0.8).law(LinearBridge(CLD)),
    "pinned CLD from a point": sd.FixedPoint(0.5).law(LinearBridge(CLD)),
}
ORDERS = {
    ("ancestral", ()): 1,
    ("euler_maruyama", ()): 1,
    ("gaussian_sde", ()): 1,
    ("predictor_corrector", ()): 1,
    ("splitting", ()): 1,
    ("splitting", (("order", 2),)): 2,
    ("ddim", ()): 1,
    ("euler", ()): 1,
    ("exponential", ()): 2,
    ("heun", ()): 2,
    ("gaussian", (("residual", "plain"),)): 1,
    ("gaussian", (("residual", "endpoint"),)): 1,
    ("gaussian", (("order", 2),)): 2,
}


def applies(law, solver):
    if law.startswith("pinned") and solver == "splitting":
        return False
    return law != "pinned CLD from a point" or solver not in FLOWS


def name_of(case):
    return case if isinstance(case, str) else "-".join([case[0], *(f"{k}={v}" for k, v in case[1])])


def law_error(name, solver, steps, options):
    law = LAWS[name]
    oracle = sd.oracles.GaussianDenoiser(law, DATA, mean=MEAN)
    mean, covariance = state_law(oracle, torch.tensor(law.start_time, dtype=torch.float64))
    times = times_to(law, 0.7, steps)
    means, covariances = exact_path_law(
        oracle, square_root(covariance), mean=mean, times=times, solver=solver, **options
    )
    true_mean, true_covariance = state_law(oracle, times[-2])
    error = (covariances[-2] - true_covariance).norm() + (means[-2] - true_mean).norm()
    return float(error / true_covariance.norm())


@pytest.mark.parametrize(
    ("name", "case"),
    [(law, case) for law in LAWS for case in ORDERS if applies(law, case[0])],
    ids=name_of,
)
def test_order_in_law(name, case):
    solver, options = case
    options = dict(options) | ({"data": MISFIT} if solver.startswith("gaussian") else {})
    order = ORDERS[case]
    # what needs no flow map is cheap
    cheap = solver not in ("ddim", "exponential", "gaussian", "heun")
    # a bridge starts where log-SNR is -∞, and its multistep solvers a few steps later
    late = name == "pinned CLD" and case in (("exponential", ()), ("gaussian", (("order", 2),)))
    steps = (16, 32, 64) if cheap or late else (8, 16, 32)
    errors = [law_error(name, solver, count, options) for count in steps]
    measured = fitted_order(steps, errors)
    assert errors[-1] > 1e-9, "an exact solver has no order to measure"
    assert errors[-1] < (0.15 if order == 1 else 0.02)
    assert abs(measured - order) < (0.25 if order == 1 else 0.4), (measured, errors)
