"""Diffusion with noise N(0, Γ) is white-noise diffusion of R⁻¹x: losses and samplers, number by number.

The white side has Γ = I, data R⁻¹x, the same white draws and the network F; the coloured side the network
conjugated by R.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import ConstantBeta
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.sampling import SOLVERS

TOLERANCE = 1e-9
STOCHASTIC = ("ancestral", "bridge", "euler_maruyama", "gaussian_sde", "predictor_corrector")
FLOWS = ("ddim", "euler", "exponential", "heun", "gaussian")
OPTIONS = {
    "gaussian": [{}, {"order": 2}, {"residual": "plain"}],
    "gaussian_sde": [{}, {"order": 2}],
    "splitting": [{}, {"order": 2}],
    # the error norm of the steps is that of the sites, which whitening changes: only a tight flow is the same
    "adaptive": [{"rtol": 1e-5, "atol": 1e-6, "method": "DOP853"}],
}


@dataclass
class Sides:
    """Γ, data covariance C and mean μ, and the same seen through R⁻¹."""

    gamma: sd.Covariance
    data: sd.Covariance
    mean: torch.Tensor
    white: sd.Covariance
    white_data: sd.Covariance
    white_mean: torch.Tensor


def torus_sides():
    grid = sd.Grid((4, 6), periodic=True)
    kernel = Matern(nu=1.5, lengthscale=1.5)
    spectrum = sd.TorusCovariance(kernel, grid).eigenvalues().detach()
    variance = sd.TorusCovariance.from_spectrum(grid, spectrum).variance().mean()
    gamma = sd.TorusCovariance.from_spectrum(grid, spectrum / variance).double()
    c = sd.TorusCovariance(Exponential(lengthscale=3.0, variance=2.0), grid).eigenvalues().detach()
    data = sd.TorusCovariance.from_spectrum(grid, c).double()
    white_data = sd.TorusCovariance.from_spectrum(grid, c / gamma.eigenvalues()).double()
    mean = field(grid, seed=5)
    return Sides(gamma, data, mean, sd.white(grid).double(), white_data, gamma.whiten(mean))


def dense_sides():
    grid = sd.Grid((4, 6), spacing=(1.5, 1.0))
    gamma = sd.DenseCovariance(Matern(nu=1.5, lengthscale=1.5), grid).double()
    data = sd.DenseCovariance(Exponential(lengthscale=3.0, variance=2.0), grid).double()
    root = torch.linalg.cholesky(gamma.to_dense().detach())
    inner = torch.linalg.solve_triangular(root, data.to_dense().detach(), upper=False)
    inner = torch.linalg.solve_triangular(root, inner.T, upper=False)
    white_data = sd.DenseCovariance((inner + inner.T) / 2, grid).double()
    mean = field(grid, seed=5)
    return Sides(gamma, data, mean, sd.white(grid).double(), white_data, gamma.whiten(mean).detach())


def field(grid, *lead, seed):
    return torch.randn(*lead, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIDES = {"torus": torus_sides(), "dense": dense_sides()}


class WhiteNetwork(nn.Module):
    """A fixed nonlinear function of the state, the time, and the start where there is one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(1, 8, 3, padding=1).double()
        self.second = nn.Conv2d(8, 1, 3, padding=1).double()

    def forward(self, u, t, start=None):
        x = u if start is None else u + 0.5 * start
        return self.second(torch.tanh(self.first(x) + t[:, None, None, None]))


class Conjugated(nn.Module):
    """`R F(R⁻¹ u)`; without one of the two where that end of the network is white already."""

    def __init__(self, inner, gamma, *, inputs=True, outputs=True):
        super().__init__()
        self.inner, self.gamma, self.inputs, self.outputs = inner, gamma, inputs, outputs

    def forward(self, u, t, **condition):
        u = self.gamma.whiten(u) if self.inputs else u
        out = self.inner(u, t, **{name: self.gamma.whiten(c) for name, c in condition.items()})
        return self.gamma.color(out) if self.outputs else out


def pair(sides, make, prediction, preconditioning, **options):
    """The coloured denoiser and its white twin."""
    network = WhiteNetwork()
    # wiener's network sees and returns white fields on both sides; a white-noise prediction is white by
    # itself
    wiener = preconditioning == "wiener"
    conjugated = Conjugated(
        network, sides.gamma, inputs=not wiener, outputs=not wiener and prediction != "white_noise"
    )
    data = {"coloured": None, "white": None}
    if preconditioning != "none":
        data = {"coloured": (sides.mean, sides.data), "white": (sides.white_mean, sides.white_data)}
    if preconditioning == "edm":  # σ_data is a number, not a field: the same on both sides
        data = {"coloured": (sides.mean, sides.gamma), "white": (sides.white_mean, sides.white)}
    arguments = {"prediction": prediction, "preconditioning": preconditioning, **options}
    if wiener:  # a tint is of the data's spectrum, which whitening changes
        arguments["tint"] = 0.0
    coloured = sd.Denoiser(conjugated, make(sides.gamma), data=data["coloured"], **arguments)
    white = sd.Denoiser(network, make(sides.white), data=data["white"], **arguments)
    return coloured, white


def close(a, b):
    assert torch.isfinite(b).all()
    assert (a - b).abs().max() <= TOLERANCE * (1.0 + b.abs().max())


CASES = [(p, "none") for p in ("data", "noise", "white_noise", "velocity")] + [
    ("data", "wiener"),
    ("noise", "wiener"),
]


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize(("prediction", "preconditioning"), [*CASES, ("data", "edm"), ("velocity", "edm")])
@pytest.mark.parametrize("make", [sd.VP, sd.VE, sd.Rectified], ids=lambda m: m.__name__)
def test_denoising_loss(name, prediction, preconditioning, make):
    sides = SIDES[name]
    coloured, white = pair(sides, make, prediction, preconditioning)
    x, z = field(sides.gamma.domain, 5, 1, seed=2), field(sides.gamma.domain, 5, 1, seed=3)
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    a = sd.Denoising(coloured, weighting="uniform", norm="whitened")(sides.gamma.color(x), white=z, t=t)
    b = sd.Denoising(white, weighting="uniform")(x, white=z, t=t)
    close(a, b)
    if preconditioning == "wiener" or prediction == "white_noise":
        # what the network predicts is the same white field on both sides
        a = sd.Denoising(coloured)(sides.gamma.color(x), white=z, t=t)
        close(a, sd.Denoising(white)(x, white=z, t=t))


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize(("prediction", "preconditioning"), CASES)
@pytest.mark.parametrize("bridge", [sd.BrownianBridge, sd.OrnsteinUhlenbeckBridge], ids=lambda m: m.__name__)
@pytest.mark.parametrize("coupling", ["fixed", "independent", "paired"])
def test_bridge_mixture_loss(name, prediction, preconditioning, bridge, coupling):
    sides = SIDES[name]
    options = {"coupling": coupling, "condition_on_start": coupling == "paired"}
    coloured, white = pair(sides, bridge, prediction, preconditioning, **options)
    grid = sides.gamma.domain
    x, x0, z = (field(grid, 5, 1, seed=s) for s in (2, 3, 4))
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    starts = (x0, sides.gamma.color(x0)) if coupling == "paired" else (None, None)
    whitened = sd.BridgeMixture(coloured, weighting="uniform", norm="whitened")
    a = whitened(sides.gamma.color(x), starts[1], white=z, t=t)
    b = sd.BridgeMixture(white, weighting="uniform")(x, starts[0], white=z, t=t)
    close(a, b)
    if preconditioning == "wiener":
        a = sd.BridgeMixture(coloured)(sides.gamma.color(x), starts[1], white=z, t=t)
        close(a, sd.BridgeMixture(white)(x, starts[0], white=z, t=t))


def draws(grid, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("solver", [*STOCHASTIC, *FLOWS])
@pytest.mark.parametrize(
    "make", [sd.VP, sd.VE, sd.Cosine, sd.Rectified, sd.BrownianMotion], ids=lambda m: m.__name__
)
def test_samplers_of_processes(name, solver, make):
    sides = SIDES[name]
    grid = sides.gamma.domain
    for prediction, preconditioning in (("data", "none"), ("data", "wiener")):
        coloured, white = pair(sides, make, prediction, preconditioning)
        for options in OPTIONS.get(solver, [{}]):
            data = {}
            if solver.startswith("gaussian"):
                data = {"coloured": (sides.mean, sides.data), "white": (sides.white_mean, sides.white_data)}
            path = [
                sd.sample(
                    denoiser,
                    3,
                    steps=6,
                    solver=solver,
                    noise=draws(grid),
                    return_path=True,
                    **options,
                    **({"data": data[side]} if data else {}),
                )
                for side, denoiser in (("coloured", coloured), ("white", white))
            ]
            close(path[0], sides.gamma.color(path[1]))


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize(
    ("coupling", "solver"),
    [(c, s) for c in ("fixed", "independent", "paired") for s in STOCHASTIC]
    + [("independent", s) for s in FLOWS],
)
def test_samplers_of_bridges(name, coupling, solver):
    sides = SIDES[name]
    grid = sides.gamma.domain
    options = {"coupling": coupling, "condition_on_start": coupling == "paired"}
    coloured, white = pair(sides, sd.OrnsteinUhlenbeckBridge, "data", "wiener", **options)
    start = field(grid, 3, 1, seed=7) if coupling == "paired" else None
    arguments = {"steps": 6, "solver": solver, "return_path": True}
    a = sd.sample(
        coloured,
        3,
        noise=draws(grid),
        start=None if start is None else sides.gamma.color(start),
        **arguments,
    )
    b = sd.sample(white, 3, noise=draws(grid), start=start, **arguments)
    close(a, sides.gamma.color(b))


SEVERAL = {
    "CLD": lambda gamma: sd.CLD(gamma, beta=ConstantBeta(2.0)),
    "MALDA": lambda gamma: sd.MALDA(gamma, 3, beta=ConstantBeta(2.0)),
    "pinned CLD": lambda gamma: sd.IndependentField(1.0).law(
        LinearBridge(sd.CLD(gamma, beta=ConstantBeta(1.0)))
    ),
}


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (process, solver)
        for process in SEVERAL
        for solver in sorted(set(SOLVERS) - {"bridge"})
        if process != "pinned CLD" or solver != "splitting"
    ],
)
def test_samplers_with_several_variables(process, solver):
    """The network in the white side sees the statistic; the whole state is compared at every step."""
    sides = SIDES["torus"]
    grid = sides.gamma.domain

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = WhiteNetwork()

        def forward(self, u, t):
            return self.inner(u[:, :1] + 0.3 * u[:, 1:2], t)

    network = Network()
    coloured = sd.Denoiser(Conjugated(network, sides.gamma), SEVERAL[process](sides.gamma))
    white = sd.Denoiser(network, SEVERAL[process](sides.white))
    times = torch.tensor([1.0, 0.7, 0.4, 0.15, 0.0], dtype=torch.float64)
    laws = (coloured.law, white.law)
    times = times * laws[0].horizon if process != "pinned CLD" else (1.0 - times) * laws[0].horizon
    for options in OPTIONS.get(solver, [{}]):
        data = {}
        if solver.startswith("gaussian"):
            data = {"coloured": (sides.mean, sides.data), "white": (sides.white_mean, sides.white_data)}
        path = [
            sd.sample(
                denoiser,
                2,
                grid=times,
                solver=solver,
                noise=draws(grid),
                return_path=True,
                **options,
                **({"data": data[side]} if data else {}),
            )
            for side, denoiser in (("coloured", coloured), ("white", white))
        ]
        assert path[0].shape == (5, 2, laws[0].variables, *grid.shape)
        if solver == "adaptive":
            assert (path[0] - sides.gamma.color(path[1])).abs().max() < 1e-3
        else:
            close(path[0], sides.gamma.color(path[1]))


def test_one_white_draw_would_be_seen():
    """The test above can fail: a white initial state breaks the equivalence."""
    sides = SIDES["torus"]
    coloured, white = pair(sides, sd.VP, "data", "wiener")
    z = draws(sides.gamma.domain)((3, 1, 4, 6))
    a = sd.sample(coloured, 3, steps=6, solver="ddim", start=z)
    b = sd.sample(white, 3, steps=6, solver="ddim", start=z)
    assert (a - sides.gamma.color(b)).abs().max() > 1e-2
