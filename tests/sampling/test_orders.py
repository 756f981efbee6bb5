"""Measured orders of convergence, without Monte-Carlo error: in law on Gaussian data, along paths on
non-Gaussian data.
"""

import functools
import math

import pytest
import torch
from exact_law import FLOWS, exact_path_law, square_root, state_law

import spatialdiff as sd
from spatialdiff.denoisers import GaussianModel, PosteriorMean
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.sampling import SOLVERS

SHAPE = (3, 4)
GRID = sd.Grid(SHAPE, periodic=True)
MEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def torus(kernel):
    return sd.TorusCovariance(kernel, GRID).double().requires_grad_(False)


GAMMA = torus(Matern(nu=1.5, lengthscale=1.3))
DATA = torus(Exponential(lengthscale=2.5, variance=1.5))
# a Gaussian that does not fit the data: it leaves the Gaussian solvers a residual to integrate
MISFIT = (0.3, torus(Matern(nu=0.5, lengthscale=1.1, variance=0.6)))

LAWS = {
    "VP": sd.VP(GAMMA, beta_min=0.5, beta_max=6.0),
    "VE": sd.VE(GAMMA, sigma_min=0.5, sigma_max=4.0),
    "independent bridge": sd.IndependentField(0.8).law(sd.BrownianBridge(GAMMA)),
    "fixed bridge": sd.FixedPoint(0.5).law(sd.OrnsteinUhlenbeckBridge(GAMMA)),
}
ORDERS = {
    ("ancestral", ()): 1,
    ("euler_maruyama", ()): 1,
    ("gaussian_sde", ()): 1,
    ("ddim", ()): 1,
    ("euler", ()): 1,
    ("heun", ()): 2,
    ("gaussian", (("residual", "plain"),)): 1,
    ("gaussian", (("residual", "endpoint"),)): 1,
    ("gaussian", (("order", 2),)): 2,
    ("exponential", ()): 2,
    ("exponential", (("order", 1),)): 1,
    ("splitting", ()): 1,
    ("splitting", (("order", 2),)): 2,
    ("predictor_corrector", ()): 1,
    ("predictor_corrector", (("predictor", "euler_maruyama"), ("correctors", 2))): 1,
}


def times_to(law, stop, steps):
    """`steps` equal steps to the time `stop` of the way, then the rest in one; what is measured is the state
    before that.
    """
    inner = torch.linspace(0.0, stop, steps + 1, dtype=torch.float64)
    fractions = torch.cat([inner, torch.ones(1, dtype=torch.float64)])
    return law.start_time + (law.end_time - law.start_time) * fractions


def fitted_order(steps, errors):
    """Slope of log error against log step over the last halving."""
    return math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])


def case_name(case):
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1])])


CASES = [
    (law, case)
    for law in LAWS
    for case in ORDERS
    if (law != "fixed bridge" or case[0] not in FLOWS) and (law == "VP" or case[0] != "splitting")
]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda v: v if isinstance(v, str) else case_name(v))
def test_order_in_law(name, case):
    solver, options = case
    law, order = LAWS[name], ORDERS[case]
    oracle = sd.oracles.GaussianDenoiser(law, DATA, mean=MEAN)
    options = dict(options) | ({"data": MISFIT} if solver.startswith("gaussian") else {})
    mean, covariance = state_law(oracle, torch.tensor(law.start_time, dtype=torch.float64))
    steps = (16, 32, 64) if order == 1 or solver == "splitting" else (48, 96, 192)
    errors = []
    for count in steps:
        times = times_to(law, 0.8, count)
        means, covariances = exact_path_law(
            oracle, square_root(covariance), mean=mean, times=times, solver=solver, **options
        )
        true_mean, true_covariance = state_law(oracle, times[-2])
        errors.append(
            float((covariances[-2] - true_covariance).norm() + (means[-2] - true_mean).norm())
            / float(true_covariance.norm())
        )
    measured = fitted_order(steps, errors)
    assert errors[-1] > 1e-9, "an exact solver has no order to measure"
    assert errors[-1] < (0.15 if order == 1 else 0.01)
    # predictor and corrector err to opposite sides, and the sum falls faster before it settles
    above = 0.6 if solver == "predictor_corrector" else 0.2 if order == 1 else 0.35
    assert -(0.2 if order == 1 else 0.35) < measured - order < above, (measured, errors)


class TwoHumps(PosteriorMean):
    """The exact posterior mean of an equal mixture of `N(a, C)` and `N(-a, C)`: smooth and not Gaussian."""

    def __init__(self, law, covariance, shift):
        super().__init__(1)
        self._law = law
        self.parts = torch.nn.ModuleList(
            GaussianModel(law.covariance, covariance, mean) for mean in (shift, -shift)
        )

    @property
    def law(self):
        return self._law

    def forward(self, u, t, **condition):
        t = self.times(u, t)
        logits = []
        for part in self.parts:
            moments = part.moments(self.law, t)
            centred = part.centre_state(u, self.law, t)
            logits.append(
                -0.5 * (centred * moments.basis.multiply(centred, 1 / moments.state)).flatten(1).sum(1)
            )
        weights = torch.softmax(torch.stack(logits), dim=0)
        means = torch.stack([part.posterior_mean(u, self.law, t) for part in self.parts])
        return (weights[:, :, None, None, None] * means).sum(0)


FIT_TO_HUMPS = (0.0, torus(Exponential(lengthscale=2.5, variance=2.0)))


@functools.cache
def humps(name):
    """The denoiser and the initial states."""
    shift = 1.2 * torch.sin(torch.arange(4, dtype=torch.float64)).expand(SHAPE)
    denoiser = TwoHumps(LAWS[name], torus(Exponential(lengthscale=2.0, variance=0.3)), shift)
    return denoiser, LAWS[name].start(2, 1, generator=torch.Generator().manual_seed(1))


def end_state(name, solver, steps, **options):
    denoiser, start = humps(name)
    times = times_to(LAWS[name], 0.8, steps)
    return sd.sample(denoiser, 2, solver=solver, grid=times, start=start, return_path=True, **options)[-2]


end_state_once = functools.cache(end_state)


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", ["VP", "VE", "independent bridge"])
@pytest.mark.parametrize("case", [c for c in ORDERS if c[0] in FLOWS], ids=case_name)
def test_order_along_paths_of_non_gaussian_data(name, case):
    solver, options = case
    order = ORDERS[case]
    reference = end_state_once(name, "heun", 320)
    options = dict(options) | ({"data": FIT_TO_HUMPS} if solver == "gaussian" else {})
    steps = (20, 40, 80)
    errors = [relative(end_state(name, solver, count, **options), reference) for count in steps]
    measured = fitted_order(steps, errors)
    assert errors[-1] < (0.1 if order == 1 else 0.01)
    assert abs(measured - order) < (0.2 if order == 1 else 0.35), (measured, errors)


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"bridge", "adaptive"}))
def test_every_solver_states_the_order_that_is_measured(solver):
    assert SOLVERS["bridge"] is SOLVERS["ancestral"]
    plain = (("residual", "endpoint"),) if solver == "gaussian" else ()
    assert SOLVERS[solver].order == ORDERS[solver, plain]


@pytest.mark.parametrize("name", ["VP", "independent bridge"])
def test_the_adaptive_flow_follows_its_tolerance(name):
    reference = end_state_once(name, "heun", 320)
    # Richardson: the error of a reference of order 2 is a third of what halving its steps changes
    uncertainty = relative(end_state(name, "heun", 160), reference) / 3
    errors = [
        relative(end_state(name, "adaptive", 2, rtol=tolerance, atol=tolerance), reference)
        for tolerance in (1e-2, 1e-5, 1e-7)
    ]
    assert errors[0] < 0.05
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < max(0.3 * errors[1], 2 * uncertainty), (errors, uncertainty)


@pytest.mark.parametrize("name", ["VP", "fixed bridge"])
def test_the_extrapolated_residual_gives_the_gaussian_sde_order_2_of_the_covariance(name):
    """The residual as it is: order 1. The mean of the law of Gaussian data is exact with either."""
    law = LAWS[name]
    oracle = sd.oracles.GaussianDenoiser(law, DATA, mean=MEAN)
    mean, covariance = state_law(oracle, torch.tensor(law.start_time, dtype=torch.float64))
    steps = (40, 80, 160)
    for order in (1, 2):
        means, spreads = [], []
        for count in steps:
            times = times_to(law, 0.8, count)
            found, covariances = exact_path_law(
                oracle,
                square_root(covariance),
                mean=mean,
                times=times,
                solver="gaussian_sde",
                data=MISFIT,
                order=order,
            )
            true_mean, true_covariance = state_law(oracle, times[-2])
            means.append(relative(found[-2], true_mean))
            spreads.append(relative(covariances[-2], true_covariance))
        assert max(means) < 1e-10
        assert abs(fitted_order(steps, spreads) - order) < (0.2 if order == 1 else 0.35), (order, spreads)
