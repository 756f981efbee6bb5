"""Evidence bounds: tight for Gaussian data, unbiased for other, the same in every arrangement."""

import math

import pytest
import torch
from gaussian_fields import DATA, GAMMAS, GRID, MEAN, PROCESSES, SITES, exact, fields, generator, oracle
from torch import nn

import spatialdiff as sd
import spatialdiff.likelihood as lk
from spatialdiff.objectives.bound import Bound
from spatialdiff.objectives.proposals import UniformProposal


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("process", PROCESSES)
def test_tight_for_gaussian_data(process, gamma):
    """Prior N(0, S ⊗ Γ): what is lost is the distance of the process to it at T, far below 1e-5 here."""
    x = fields()
    bound = lk.evidence_bound(oracle(process, gamma), x, samples=4, t0=1e-2, generator=generator(1))
    assert float((bound.value - exact(x)).abs().max()) / SITES < 1e-5
    # the score is exact, and so nothing is left to chance
    assert float(bound.standard_error.max()) < 1e-9
    # from the marginal at T itself, the bound is the density
    fitted = lk.evidence_bound(oracle(process, gamma), x, samples=4, prior="gaussian", generator=generator(1))
    assert torch.allclose(fitted.value, exact(x), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("process", ["VP", "CLD"])
def test_tight_by_quadrature_of_the_score_error(process):
    """No control variate: the score error of the oracle itself, integrated over λ without any randomness."""
    x, denoiser = fields(1), oracle(process)
    law, interval = denoiser.law, Bound(denoiser, UniformProposal()).interval
    nodes, weights = gauss_legendre(interval.low, interval.high, 60)
    lost = 0.0
    for level, weight in zip(nodes, weights, strict=True):
        t = law.time_of_log_snr(level)
        # E‖x - D‖² over the noise: D is affine in the state, so unit vectors give its linear part
        clean = x - denoiser(law.mean(x, t), t)
        units = torch.eye(law.variables * SITES, dtype=torch.float64)
        units = units.reshape(-1, law.variables, *GRID.shape)
        coloured = law.mix(law.root(t), units)
        shifted = denoiser(law.mean(x.expand(len(units), *x.shape[1:]), t) + coloured, t)
        spread = shifted - denoiser(law.mean(x, t), t)
        error = clean.square().sum() + spread.square().sum()
        lost = lost + weight * 0.5 * law.information(t) * error
    bound = lk.evidence_bound(denoiser, x, samples=2, prior="gaussian")
    value = bound.terms["prior"] + bound.terms["decoder"] - lost
    assert float((value - exact(x)).abs()) / SITES < 1e-6


def gauss_legendre(low, high, count):
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    half = 0.5 * (high - low)
    return torch.as_tensor(low + half * (nodes + 1.0)), torch.as_tensor(half * weights)


@pytest.mark.parametrize(
    "options",
    [
        {"control": False, "decoder": "network"},
        {"control": False, "proposal": "log_snr"},
        {"form": "implicit"},
        {"conditioning": "full"},
        {"arrangement": "paper"},
        {"arrangement": "paper", "form": "implicit"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("process", ["VP", "MALDA"])
def test_every_arrangement_estimates_the_same_number(process, options):
    x = fields(2).repeat(8, 1, 1, 1)
    bound = lk.evidence_bound(
        oracle(process, "matern"), x, samples=96, t0=1e-2, generator=generator(2), **options
    )
    # eight independent estimates for each field
    values, errors = bound.value.reshape(8, 2), bound.standard_error.reshape(8, 2)
    error = errors.square().sum(0).sqrt() / 8
    assert ((values.mean(0) - exact(fields(2))).abs() < 5 * error + 1e-5).all()
    # and the standard errors are of the size of the spread: a chi-squared with 7 degrees of freedom
    ratio = values.var(0) / errors.square().mean(0)
    assert ((ratio > 0.08) & (ratio < 4.0)).all()


class Mixture(nn.Module):
    """Posterior mean of a mixture of two Gaussian fields, as the network of a denoiser."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, u, t):
        law = self.parts[0].law
        y, alpha, variance = law.reduce(u, t), law.alpha(t), law.variance(t)
        logits, means = [], []
        for part in self.parts:
            c = part.gaussian.data_covariance.to_dense()
            state = alpha[:, None, None] ** 2 * c + variance[:, None, None] * law.covariance.to_dense()
            centred = (y - law.scale(alpha, part.gaussian.mean.expand_as(y))).flatten(1)
            normal = torch.distributions.MultivariateNormal(torch.zeros(SITES, dtype=y.dtype), state)
            logits.append(normal.log_prob(centred))
            means.append(part(u, t))
        weights = torch.stack(logits).softmax(0)
        return (weights[..., None, None, None] * torch.stack(means)).sum(0)


def mixture(process, **options):
    law = PROCESSES[process](GAMMAS["matern"])
    parts = [sd.oracles.GaussianDenoiser(law, DATA, sign * 12 * MEAN) for sign in (-1, 1)]
    return sd.Denoiser(Mixture(parts), law, **options)


def mixture_density(x):
    c = DATA.to_dense()
    laws = [torch.distributions.MultivariateNormal(sign * 12 * MEAN.flatten(), c) for sign in (-1, 1)]
    return torch.logsumexp(torch.stack([law.log_prob(x.flatten(1)) for law in laws]), 0) - math.log(2)


@pytest.mark.parametrize("process", ["VP", "CLD"])
def test_exact_for_a_mixture_and_the_control_variate_changes_no_expectation(process):
    """The exact posterior mean of non-Gaussian data: the bound is the density, up to the decoder's shape."""
    x = fields(2) + 9 * MEAN
    plain = mixture(process)
    fitted = mixture(process, data=(torch.zeros(1, *GRID.shape, dtype=torch.float64), DATA))
    bounds = {}
    for name, denoiser in {"plain": plain, "fitted": fitted}.items():
        bounds[name] = lk.evidence_bound(
            denoiser,
            x,
            samples=256,
            decoder_samples=32,
            decoder="network",
            prior="noise",
            generator=generator(3),
        )
        error = bounds[name].standard_error
        assert ((bounds[name].value - mixture_density(x)).abs() < 5 * error + 1e-4).all()
    assert (bounds["fitted"].standard_error < bounds["plain"].standard_error).all()


@pytest.mark.parametrize("process", ["VP", "MALDA"])
def test_a_wrong_posterior_mean_costs_what_it_should(process):
    """Under the law N(0, C') of a wrong variance the bound is the density of N(0, C') itself."""
    wrong = DATA.scaled(0.7)
    law = PROCESSES[process](GAMMAS["white"])
    x = fields()
    bound = lk.evidence_bound(sd.oracles.GaussianDenoiser(law, wrong), x, samples=2, prior="gaussian")
    normal = torch.distributions.MultivariateNormal(torch.zeros(SITES, dtype=x.dtype), wrong.to_dense())
    assert torch.allclose(bound.value, normal.log_prob(x.flatten(1)), atol=1e-8)


def test_spectral_processes_and_channels():
    """Coefficients per mode, and correlated channels: still the exact density."""
    from spatialdiff.processes import LinearDiffusion

    gamma = GAMMAS["matern"]
    speed = 0.5 + gamma.basis.wavenumbers[..., None, None]
    modal = LinearDiffusion(gamma, -0.5 * speed, speed, beta=sd.VP(gamma).schedule.beta)
    x = fields()
    bound = lk.evidence_bound(sd.oracles.GaussianDenoiser(modal, DATA, MEAN), x, samples=4, prior="gaussian")
    assert torch.allclose(bound.value, exact(x), atol=1e-8)
    drawn = lk.evidence_bound(
        sd.oracles.GaussianDenoiser(modal, DATA, MEAN),
        x,
        samples=128,
        prior="gaussian",
        control=False,
        generator=generator(4),
    )
    assert ((drawn.value - exact(x)).abs() < 5 * drawn.standard_error).all()

    matrix = torch.tensor([[1.0, 0.4], [0.4, 2.0]], dtype=torch.float64)
    from spatialdiff.kernels import Matern

    kernel = Matern(nu=0.5, lengthscale=1.0)
    joint = sd.covariance(kernel, GRID, method="cosine", channels=matrix).double().requires_grad_(False)
    x = joint.sample((3,), generator=generator(5))
    for noise in (gamma, joint):
        oracle2 = sd.oracles.GaussianDenoiser(PROCESSES["CLD"](noise), joint)
        bound = lk.evidence_bound(oracle2, x, samples=4, prior="gaussian")
        assert bound.sites == 2 * SITES
        assert torch.allclose(bound.value, joint.log_prob(x), atol=1e-8)
        drawn = lk.evidence_bound(oracle2, x, samples=128, control=False, generator=generator(6))
        assert ((drawn.value - joint.log_prob(x)).abs() < 5 * drawn.standard_error + 1e-3).all()


def test_a_bridge_has_a_bound_too():
    """From independent Gaussian starts the law given the data is Gaussian, and so is the bound's algebra."""
    bridge = sd.BrownianBridge(GAMMAS["matern"])
    denoiser = sd.oracles.GaussianDenoiser(bridge, DATA, MEAN, coupling="independent")
    x = fields()
    bound = lk.evidence_bound(denoiser, x, samples=4)
    assert torch.allclose(bound.value, exact(x), atol=1e-8)
    drawn = lk.evidence_bound(denoiser, x, samples=128, control=False, generator=generator(7))
    assert ((drawn.value - exact(x)).abs() < 5 * drawn.standard_error).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 3}, "even number"),
        ({"arrangement": "open"}, "closed, paper"),
        ({"prior": "flat"}, "stationary, noise, gaussian"),
        ({"decoder": "unet"}, "gaussian, network, state"),
        ({"form": "sliced"}, "unknown form"),
        ({"conditioning": "none"}, "hybrid, full"),
        ({"proposal": "late"}, "analytic, learned, log_snr, time"),
        ({"t0": 1.0}, "strictly between"),
        ({"t0": 0.0}, "strictly between"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lk.evidence_bound(oracle("VP"), fields(), **options)


def test_bad_fields_and_models():
    x = fields()
    with pytest.raises(ValueError, match=r"needed \(B, 1, 2, 4\)"):
        lk.evidence_bound(oracle("VP"), x[..., :3])
    with pytest.raises(ValueError, match="1 values that are not finite"):
        lk.evidence_bound(
            oracle("VP"), x.index_put((torch.tensor([0]),) * 4, torch.tensor(math.nan).double())
        )
    plain = mixture("VP")
    for name in ("prior", "decoder"):
        with pytest.raises(ValueError, match="fitted law of the data"):
            lk.evidence_bound(plain, x, **{name: "gaussian"})
    paired = sd.Denoiser(nn.Identity(), sd.BrownianBridge(GAMMAS["white"]), coupling="paired")
    with pytest.raises(ValueError, match="no law of the state given the data alone"):
        lk.evidence_bound(paired, x)
    with pytest.raises(ValueError, match="has no stationary law"):
        lk.evidence_bound(oracle(sd.VE), x, prior="stationary")
