"""The loop around the solvers: grids, seeds, modes, starts, messages."""

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import ConstantBeta
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.sampling import GRIDS, SOLVERS, Noise, run, time_grid

SHAPE = (4, 6)
GRID = sd.Grid(SHAPE, periodic=True)


def torus(kernel):
    return sd.covariance(kernel, GRID, method="torus").double().requires_grad_(False)


GAMMA = torus(Matern(nu=1.5, lengthscale=1.5))
DATA = torus(Exponential(lengthscale=2.0, variance=2.0))
LAWS = {
    "VP": sd.VP(GAMMA),
    "VE": sd.VE(GAMMA),
    "Cosine": sd.Cosine(GAMMA),
    "Rectified": sd.Rectified(GAMMA),
    "OrnsteinUhlenbeck": sd.OrnsteinUhlenbeck(GAMMA),
    "fixed bridge": sd.FixedPoint(0.0).law(sd.BrownianBridge(GAMMA)),
    "independent bridge": sd.IndependentField(1.0).law(sd.OrnsteinUhlenbeckBridge(GAMMA)),
    "CLD": sd.CLD(GAMMA),
    "pinned CLD": sd.IndependentField(1.0).law(LinearBridge(sd.CLD(GAMMA, beta=ConstantBeta(2.0)))),
}


def oracle(law="VP"):
    return sd.oracles.GaussianDenoiser(LAWS[law], DATA)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grids_lead_from_start_to_end(grid, law, steps):
    law = LAWS[law]
    times = time_grid(law, steps, grid)
    assert times.shape == (steps + 1,)
    assert float(times[0]) == law.start_time
    assert float(times[-1]) == law.end_time
    assert (times.diff() * (law.end_time - law.start_time) > 0).all()


def test_grids_are_what_their_names_say():
    law = LAWS["VP"]
    level = -0.5 * law.log_snr(time_grid(law, 10, "log_snr", sigma_min=0.01, sigma_max=1e3)[:-1])
    assert torch.allclose(level.diff(), level.diff()[:1].expand(9))
    assert torch.allclose(level[-1] + level.diff()[-1], torch.tensor(0.01, dtype=torch.float64).log())
    power = torch.exp(-0.5 * law.log_snr(time_grid(law, 10, "edm", sigma_max=1e3)[:-1])) ** (1 / 7)
    assert torch.allclose(power.diff(), power.diff()[:1].expand(9))
    # a start without signal: the next level is on the way down from sigma_max
    level = -0.5 * LAWS["Rectified"].log_snr(time_grid(LAWS["Rectified"], 10, sigma_min=0.01, sigma_max=50.0))
    assert float(level[0]) == float("inf")
    assert torch.allclose(level[1].exp(), torch.tensor(50.0 * (0.01 / 50.0) ** 0.1, dtype=torch.float64))


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_seeds_paths_and_shapes(solver):
    law = LAWS["VP" if solver == "splitting" else "independent bridge"]
    denoiser = sd.oracles.EmpiricalDenoiser(law, DATA.sample((5, 2)))
    options = {"data": DATA} if solver.startswith("gaussian") else {}

    def draw(seed, **more):
        generator = torch.Generator().manual_seed(seed)
        return sd.sample(denoiser, 3, steps=4, solver=solver, generator=generator, **options, **more)

    fields = draw(0)
    assert fields.shape == (3, 2, *SHAPE)
    assert not fields.requires_grad
    assert torch.equal(fields, draw(0))
    assert not torch.equal(fields, draw(1))
    path = draw(0, return_path=True)
    assert path.shape == (5, 3, 2, *SHAPE)
    assert torch.equal(path[-1], fields)
    assert torch.equal(draw(0, progress=True), fields)


@pytest.mark.parametrize(
    ("law", "solver"),
    [
        (law, solver)
        for law in ("VP", "Rectified", "independent bridge", "CLD", "pinned CLD")
        for solver in sorted(SOLVERS)
        if not solver.startswith("gaussian") and (solver != "splitting" or law in ("VP", "CLD"))
    ],
)
def test_a_single_datum_is_found(law, solver):
    """With one possible field the posterior mean is that field, and the last step returns it."""
    x = DATA.sample((1, 1), generator=torch.Generator().manual_seed(0))
    denoiser = sd.oracles.EmpiricalDenoiser(LAWS[law], x)
    fields = sd.sample(denoiser, 2, steps=3, solver=solver)
    assert fields.shape == (2, 1, *SHAPE)
    assert torch.allclose(fields, x.expand(2, 1, *SHAPE))


def test_modes_and_conditions_are_kept():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.frozen = nn.BatchNorm2d(1).eval()
            self.weight = nn.Parameter(torch.zeros(()))
            self.seen = []

        def forward(self, u, t, mask):
            assert not self.drop.training
            self.seen.append(mask)
            return self.drop(u) * self.weight

    network = Network().double()
    denoiser = sd.Denoiser(network, LAWS["VP"], preconditioning="wiener", data=DATA)
    mask = torch.ones(2, 1, *SHAPE)
    sd.sample(denoiser, 2, steps=3, condition={"mask": mask})
    assert len(network.seen) == 3
    assert network.seen[0] is mask
    assert network.training
    assert network.drop.training
    assert not network.frozen.training


def test_pairs_start_from_given_fields():
    class Network(nn.Module):
        seen = None

        def forward(self, u, t, start):
            self.seen = start
            return torch.zeros_like(u)

    network = Network()
    bridge = sd.BrownianBridge(GAMMA)
    denoiser = sd.Denoiser(
        network, bridge, preconditioning="wiener", data=DATA, coupling="paired", condition_on_start=True
    )
    start = DATA.sample((3, 1), generator=torch.Generator().manual_seed(0))
    path = sd.sample(denoiser, 3, steps=5, solver="bridge", start=start, return_path=True)
    assert torch.equal(path[0], start)
    assert torch.equal(network.seen, start)
    with pytest.raises(ValueError, match="pass start="):
        sd.sample(denoiser, 3)
    unconditional = sd.Denoiser(nn.Identity(), bridge, coupling="paired")
    unconditional.network.forward = lambda u, t: u
    for solver in ("bridge", "euler_maruyama"):
        assert sd.sample(unconditional, 3, steps=4, solver=solver, start=start).shape == start.shape


def test_two_channels_with_correlated_noise():
    mixing = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    gamma = (
        sd.covariance(Matern(nu=1.5, lengthscale=1.5), GRID, channels=mixing).double().requires_grad_(False)
    )
    data = sd.covariance(Exponential(lengthscale=2.0), GRID, channels=2).double().requires_grad_(False)
    denoiser = sd.oracles.GaussianDenoiser(sd.VP(gamma), data)
    fields = sd.sample(denoiser, 4000, steps=2, solver="gaussian", generator=torch.Generator().manual_seed(0))
    sites = fields.permute(1, 0, 2, 3).flatten(1)
    # independent channels of unit variance; 24 correlated sites a field count as one
    assert (sites @ sites.T / sites.shape[1] - torch.diag(data.variance()[:, 0, 0])).abs().max() < 5 * (
        2 / 4000
    ) ** 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"solver": "rk4"},
            ValueError,
            "adaptive, ancestral, bridge, ddim, euler, euler_maruyama, exponential",
        ),
        ({"grid": "cosine"}, ValueError, "log_snr, uniform"),
        ({"steps": 0}, ValueError, "at least 1 step"),
        ({"grid": torch.tensor([1.0, 0.5])}, ValueError, "runs from 1 to 0"),
        ({"grid": torch.tensor([1.0, 0.5, 0.7, 0.0])}, ValueError, "strictly monotone"),
        ({"start": torch.zeros(2, 2, *SHAPE)}, ValueError, "start has shape"),
        ({"start": torch.full((2, 1, *SHAPE), torch.nan)}, ValueError, "48 values that are not finite"),
        ({"noise": [torch.zeros(2, 1, *SHAPE)]}, ValueError, "noise= holds 1 white draws"),
        ({"noise": [torch.zeros(2, 3, *SHAPE)]}, ValueError, "white has shape"),
        ({"solver": "gaussian", "order": 3}, ValueError, "orders 1 and 2"),
        ({"solver": "gaussian", "residual": "constant"}, ValueError, "'endpoint' and 'plain'"),
        ({"solver": "gaussian", "order": 2, "residual": "plain"}, ValueError, "needs residual='endpoint'"),
        ({"solver": "gaussian_sde", "order": 3}, ValueError, "residuals of order 1 and 2"),
        ({"solver": "exponential", "order": 3}, ValueError, "orders 1 and 2"),
        ({"solver": "splitting", "order": 3}, ValueError, "orders 1 and 2"),
        ({"solver": "adaptive", "method": "Radau"}, ValueError, "RK23, RK45, DOP853"),
        ({"solver": "adaptive", "rtol": 0.0}, ValueError, "must be positive"),
        ({"solver": "predictor_corrector", "correctors": 0}, ValueError, "at least 1"),
        ({"solver": "predictor_corrector", "predictor": "ddim"}, ValueError, "ancestral, euler_maruyama"),
        ({"solver": "predictor_corrector", "largest": 2.0}, ValueError, "largest < 2"),
        ({"sigma_min": 100.0}, ValueError, "0 < sigma_min < sigma_max"),
        ({"order": 2}, TypeError, "order"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        sd.sample(oracle(), 2, **options)


def test_bad_denoisers():
    with pytest.raises(ValueError, match="at least one field"):
        sd.sample(oracle(), 0)
    with pytest.raises(ValueError, match="need the fitted Gaussian law"):
        sd.sample(sd.oracles.EmpiricalDenoiser(LAWS["VP"], DATA.sample((5, 1))), 2, solver="gaussian")
    with pytest.raises(RuntimeError, match="no coupling yet"):
        sd.sample(sd.Denoiser(nn.Identity(), sd.BrownianBridge(GAMMA)), 2)


@pytest.mark.parametrize("solver", ["adaptive", "ddim", "euler", "exponential", "heun", "gaussian"])
def test_a_point_has_no_flow(solver):
    with pytest.raises(RuntimeError, match="starts from a point has none"):
        sd.sample(oracle("fixed bridge"), 2, solver=solver)


def test_splitting_needs_a_stationary_law():
    with pytest.raises(ValueError, match="VE has none"):
        sd.sample(oracle("VE"), 2, solver="splitting")


def test_the_adaptive_solver_counts_its_calls():
    counts = {}
    for rtol in (1e-2, 1e-6):
        report = {}
        sd.sample(oracle("CLD"), 2, steps=2, solver="adaptive", rtol=rtol, atol=rtol, report=report)
        counts[rtol] = report["evaluations"]
    assert 6 < counts[1e-2] < counts[1e-6]


@pytest.mark.parametrize("solver", ["exponential", "heun", "gaussian", "ancestral"])
@pytest.mark.parametrize("law", ["VP", "CLD"])
def test_a_run_has_gradients(law, solver):
    """Derivative of the output with respect to a time of the grid, against a difference quotient."""
    denoiser = sd.oracles.GaussianDenoiser(LAWS[law], DATA)
    options = {"data": (0.3, GAMMA)} if solver == "gaussian" else {}
    start = LAWS[law].start(1, 1, generator=torch.Generator().manual_seed(3))

    def end(middle):
        white = torch.Generator().manual_seed(4)
        noise = Noise(LAWS[law], 1, 1, white=lambda s: torch.randn(s, generator=white, dtype=torch.float64))
        method = SOLVERS[solver](denoiser, noise, {}, **options)
        one = torch.ones((), dtype=torch.float64)
        return run(method, torch.stack([one, 0.7 * one, middle, 0.1 * one, 0 * one]), start)[-1].sum()

    middle = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(middle), middle)
    with torch.no_grad():
        quotient = (end(middle + 1e-5) - end(middle - 1e-5)) / 2e-5
    assert abs(float(slope - quotient)) < 1e-5 * (1.0 + abs(float(quotient)))
