"""The exact Wasserstein-2 error against linear algebra, closed forms and samples; grids of least error."""

import math

import pytest
import torch
from exact_law import exact_path_law, square_root, state_law

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.oracles import gaussian_transport_error
from spatialdiff.processes.spectral import HeatDissipation, StochasticHeat
from spatialdiff.sampling import GRIDS, time_grid
from spatialdiff.sampling.transport import TransportProblem

SHAPE = (4, 3)
GRID = sd.Grid(SHAPE)
TORUS = sd.Grid((6, 4), periodic=True)


def cosine(kernel, channels=None):
    return sd.CosineCovariance(kernel, GRID, channels=channels).double().requires_grad_(False)


def torus(kernel, channels=None):
    return sd.TorusCovariance(kernel, TORUS, channels=channels).double().requires_grad_(False)


NOISE, DATA = Matern(nu=1.5, lengthscale=1.3), Exponential(lengthscale=2.5, variance=1.5)
OTHER = Matern(nu=0.5, lengthscale=1.1, variance=0.6)
GAMMA = cosine(NOISE)
MEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LAWS = {
    "VP": sd.VP(GAMMA),
    "bridge": sd.IndependentField(0.8, mean=0.3).law(sd.BrownianBridge(GAMMA)),
    "fixed bridge": sd.FixedPoint(MEAN).law(sd.OrnsteinUhlenbeckBridge(GAMMA)),
    "heat": HeatDissipation(GAMMA, 2.0),
}
CASES = [
    *[("VP", s) for s in ("ancestral", "ddim", "heun", "euler_maruyama", "predictor_corrector")],
    *[("bridge", s) for s in ("bridge", "exponential")],
    ("fixed bridge", "euler_maruyama"),
    ("heat", "ancestral"),
]


def dense_distance(mean, covariance, true_mean, true_covariance):
    """Bures: of two Gaussian laws, by matrix square roots."""
    root = square_root(true_covariance)
    cross = square_root(root @ covariance @ root)
    square = torch.trace(covariance + true_covariance - 2.0 * cross) + (mean - true_mean).square().sum()
    return float(square.clamp(min=0.0).sqrt())


def output_law(law, solver, times, mean, truth, **options):
    """Mean and covariance of the output, on the sites, from the solver's own start."""
    oracle = sd.oracles.GaussianDenoiser(law, truth, mean=mean)
    start = law.start_time if solver != "euler_maruyama" else law.sde_start_time
    t = torch.tensor(start, dtype=torch.float64)
    if solver.startswith("gaussian"):
        first = sd.oracles.GaussianDenoiser(law, options["data"][1], mean=options["data"][0])
        offset, spread = state_law(first, t)
    else:
        offset = law.offset(t).expand(SHAPE).flatten()
        spread = law.root(t).flatten()[0].square() * law.covariance.to_dense()
    means, covariances = exact_path_law(
        oracle, square_root(spread), times=times, solver=solver, mean=offset, **options
    )
    return means[-1], covariances[-1]


@pytest.mark.parametrize(("name", "solver"), CASES)
def test_equals_dense_distance(name, solver):
    law, data = LAWS[name], cosine(DATA)
    found = gaussian_transport_error(law, solver, 5, (MEAN, data), grid="edm")
    mean, covariance = output_law(law, solver, found.times, MEAN, data)
    expected = dense_distance(mean, covariance, MEAN.flatten(), data.to_dense())
    assert found.error == pytest.approx(expected, rel=1e-6)
    assert found.mean_error == pytest.approx(float((mean - MEAN.flatten()).norm()), rel=1e-6, abs=1e-12)
    assert float(found.per_mode.sum()) == pytest.approx(found.error**2 - found.mean_error**2, rel=1e-9)
    assert found.relative == pytest.approx(expected / math.sqrt(float(data.to_dense().trace())), rel=1e-6)


@pytest.mark.parametrize("solver", ["gaussian", "gaussian_sde"])
@pytest.mark.parametrize("believed_mean", [None, 0.4])
def test_a_gaussian_solver_that_is_wrong_about_the_data(solver, believed_mean):
    law, data = LAWS["VP"], cosine(DATA)
    believed = (believed_mean, cosine(OTHER))
    found = gaussian_transport_error(law, solver, 4, (MEAN, data), data=believed)
    mean, covariance = output_law(law, solver, found.times, MEAN, data, data=believed)
    expected = dense_distance(mean, covariance, MEAN.flatten(), data.to_dense())
    assert expected > 0.05
    assert found.error == pytest.approx(expected, rel=1e-6)


def test_ddim_is_a_product_over_steps_in_every_mode():
    gamma, data = torus(NOISE), torus(DATA)
    law = sd.VP(gamma)
    found = gaussian_transport_error(law, "ddim", 7, data)
    g, c = gamma.eigenvalues(), data.eigenvalues()
    factor = law.sigma(1.0) * torch.ones_like(g)
    for t, s in zip(found.times[:-1], found.times[1:], strict=True):
        a, b = law.alpha(t), law.alpha(s)
        wiener = a * c / (a**2 * c + law.variance(t) * g)
        ratio = law.sigma(s) / law.sigma(t)
        factor = factor * (ratio + (b - a * ratio) * wiener)
    expected = (gamma.basis.weights * (factor.abs() * g.sqrt() - c.sqrt()).square()).sum().sqrt()
    assert found.error == pytest.approx(float(expected), rel=1e-10)


def test_ancestral_steps_have_a_closed_recursion():
    gamma, data = torus(NOISE), torus(DATA)
    law = sd.VE(gamma, sigma_max=20.0)
    found = gaussian_transport_error(law, "ancestral", 6, data)
    g, c = gamma.eigenvalues(), data.eigenvalues()
    power = law.variance(1.0) * g
    for t, s in zip(found.times[:-1], found.times[1:], strict=True):
        keep, pull, fresh = (value.reshape(()) for value in law.posterior(t, s))
        gain = law.alpha(t) * c / (law.alpha(t) ** 2 * c + law.variance(t) * g)
        power = (keep + pull * gain).square() * power + fresh * g
    assert torch.allclose(found.output, power, rtol=1e-10)


@pytest.mark.parametrize(
    ("process", "solver"), [(sd.VP, "heun"), (sd.VP, "ancestral"), (sd.CLD, "ancestral"), (sd.CLD, "ddim")]
)
def test_equals_the_error_measured_on_samples(process, solver):
    gamma, data = torus(NOISE), torus(DATA)
    law, count, steps = process(gamma), 100_000, 3
    found = gaussian_transport_error(law, solver, steps, data, grid="uniform")
    oracle = sd.oracles.GaussianDenoiser(law, data)
    fields = sd.sample(
        oracle, count, steps=steps, solver=solver, grid="uniform", generator=torch.Generator().manual_seed(3)
    )
    weights, c = gamma.basis.weights, data.eigenvalues()
    power = gamma.basis.analyze(fields.double()).abs().square().mean((0, 1))
    measured = (weights * (power.sqrt() - c.sqrt()).square()).sum()
    # √ of a mean of `count w` squares: variance ĉ/(2 count w), which is also the bias of the square
    spread = found.output / (2.0 * count * weights)
    bias = float((weights * spread).sum())
    deviation = (found.output.sqrt() - c.sqrt()).square()
    error = float(
        (4.0 * weights.square() * deviation * spread + 2.0 * (weights * spread).square()).sum().sqrt()
    )
    assert error < 0.05 * found.error**2
    assert abs(float(measured) - bias - found.error**2) < 5.0 * error


@pytest.mark.parametrize(
    "law",
    [
        sd.CLD(GAMMA),
        sd.ALDA(GAMMA),
        StochasticHeat(GAMMA, 0.1, 0.5),
        sd.IndependentField(0.8, mean=0.3).law(sd.LinearBridge(sd.CLD(GAMMA))),
    ],
    ids=["CLD", "ALDA", "heat", "bridge of CLD"],
)
def test_exact_solvers_have_no_error_and_others_do(law):
    for solver in ("gaussian", "gaussian_sde"):
        assert gaussian_transport_error(law, solver, 2, (MEAN, cosine(DATA))).relative < 1e-7
    coarse, fine = (
        gaussian_transport_error(law, "ancestral", steps, (MEAN, cosine(DATA)), grid="uniform").relative
        for steps in (8, 32)
    )
    assert 0.01 < fine < 0.6 * coarse


def test_correlated_channels_and_dense_covariances():
    separate = [
        gaussian_transport_error(
            sd.VP(torus(Matern(nu=1.5, lengthscale=1.3, variance=v))), "ddim", 4, torus(DATA)
        )
        for v in (1.0, 2.0)
    ]
    diagonal = sd.VP(torus(NOISE, channels=torch.diag(torch.tensor([1.0, 2.0]))))
    joint = gaussian_transport_error(diagonal, "ddim", 4, torus(DATA), grid=separate[0].times)
    assert joint.error**2 == pytest.approx(sum(part.error**2 for part in separate), rel=1e-6)
    # rotated channels of Γ and data: the same distance
    angle = torch.tensor(0.6, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    mixed = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    rotated = sd.VP(torus(NOISE, channels=turn @ mixed @ turn.T))
    turned = gaussian_transport_error(rotated, "ddim", 4, torus(DATA), grid=separate[0].times)
    assert turned.error == pytest.approx(joint.error, rel=1e-6)
    dense = [sd.DenseCovariance(kernel, GRID).double().requires_grad_(False) for kernel in (NOISE, DATA)]
    found = gaussian_transport_error(sd.VP(dense[0]), "ancestral", 4, (MEAN, dense[1]))
    mean, covariance = output_law(sd.VP(dense[0]), "ancestral", found.times, MEAN, dense[1])
    expected = dense_distance(mean, covariance, MEAN.flatten(), dense[1].to_dense())
    assert found.error == pytest.approx(expected, rel=1e-6)


def test_eigenvalues_stand_for_a_covariance():
    law, data = sd.VP(torus(NOISE)), torus(DATA)
    by_values = gaussian_transport_error(law, "heun", 6, data.eigenvalues())
    assert by_values.error == pytest.approx(gaussian_transport_error(law, "heun", 6, data).error, rel=1e-12)
    three = gaussian_transport_error(law, "heun", 6, data, channels=3)
    assert three.error == pytest.approx(math.sqrt(3.0) * by_values.error, rel=1e-12)
    assert three.relative == pytest.approx(by_values.relative, rel=1e-12)


def test_what_has_no_linear_law_is_refused():
    law, data = sd.VP(torus(NOISE)), torus(DATA)
    with pytest.raises(ValueError, match="not linear"):
        gaussian_transport_error(law, "adaptive", 4, data)
    with pytest.raises(ValueError, match="unknown solver"):
        gaussian_transport_error(law, "rk45", 4, data)
    with pytest.raises(ValueError, match="eigenvalues of shape"):
        gaussian_transport_error(law, "ddim", 4, torch.ones(5, 4))
    with pytest.raises(ValueError, match="not negative"):
        gaussian_transport_error(law, "ddim", 4, -data.eigenvalues())
    with pytest.raises(ValueError, match="paired"):
        gaussian_transport_error(sd.BrownianBridge(torus(NOISE)), "bridge", 4, data, coupling="paired")


def test_a_solver_that_scales_with_its_state_is_found_out(monkeypatch):
    from spatialdiff.sampling import modal
    from spatialdiff.sampling.ancestral import Ancestral

    class Normed(Ancestral):
        def step(self, u, t, s):
            return super().step(u, t, s) / u.norm().clamp(min=1.0)

    monkeypatch.setitem(modal.SOLVERS, "normed", Normed)
    with pytest.raises(ValueError, match="not linear"):
        gaussian_transport_error(sd.VP(torus(NOISE)), "normed", 4, torus(DATA))


OPTIMISED = [
    ("VP", sd.VP(torus(NOISE)), "ancestral", 6),
    ("VP", sd.VP(torus(NOISE)), "heun", 5),
    ("heat", HeatDissipation(torus(NOISE), 2.0), "ddim", 5),
    ("bridge", sd.IndependentField(0.8, mean=0.3).law(sd.BrownianBridge(torus(NOISE))), "bridge", 5),
    ("CLD", sd.CLD(torus(NOISE)), "ancestral", 3),
]


@pytest.mark.parametrize(("name", "law", "solver", "steps"), OPTIMISED)
def test_optimised_grids_beat_every_named_one(name, law, solver, steps):
    data = (0.7, torus(DATA))
    named = [
        gaussian_transport_error(law, solver, steps, data, grid=grid).error for grid in (*GRIDS, "fitted")
    ]
    best = gaussian_transport_error(law, solver, steps, data, grid="optimised")
    towards = math.copysign(1.0, law.end_time - law.start_time)
    assert bool((best.times.diff() * towards > 0).all())
    assert float(best.times[0]) == law.start_time
    assert float(best.times[-1]) == law.end_time
    assert best.error < min(named), (best.error, named)
    # a local minimum: no inner time can be moved to gain more than a trace
    problem = TransportProblem.of(law, data)
    for i in range(1, steps):
        for share in (-0.02, 0.02):
            moved = best.times.clone()
            moved[i] += share * (moved[i + 1] - moved[i] if share > 0 else moved[i] - moved[i - 1])
            near = gaussian_transport_error(law, solver, steps, data, grid=moved).error
            assert near > 0.998 * best.error
    assert problem.trace > 0


def test_sampling_uses_the_optimised_grid():
    law, data = sd.VP(torus(NOISE)), torus(DATA)
    model = sd.oracles.GaussianDenoiser(law, data).gaussian
    times = time_grid(law, 4, "optimised", model=model, solver="ddim")
    assert torch.equal(times, gaussian_transport_error(law, "ddim", 4, data, grid="optimised").times)


def test_the_optimised_grid_is_searched_once_for_the_same_values(monkeypatch):
    from spatialdiff.sampling import optimised

    searches = []
    original = optimised.search
    monkeypatch.setattr(optimised, "search", lambda *a: searches.append(1) or original(*a))
    law = sd.VP(torus(NOISE))
    covariance = torus(DATA)
    model = sd.oracles.GaussianDenoiser(law, covariance).gaussian

    def asked(steps=3, options=None):
        return time_grid(law, steps, "optimised", model=model, solver="exponential", options=options)

    first = asked()
    assert torch.equal(asked(), first)
    assert len(searches) == 1
    asked(4)
    assert len(searches) == 2
    assert not torch.equal(asked(options={"order": 1}), first)
    assert len(searches) == 3
    with torch.no_grad():
        covariance.kernel.raw_lengthscale.add_(0.5)
    assert not torch.equal(asked(), first)
    assert len(searches) == 4
