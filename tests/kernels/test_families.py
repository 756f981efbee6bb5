"""Every isotropic family against mpmath, quadrature, finite differences and its own batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import torch

import spatialdiff.kernels as kernels
from spatialdiff.kernels import (
    Askey,
    Circular,
    Cubic,
    DampedCosine,
    Gaussian,
    GeneralizedCauchy,
    GeneralizedWendland,
    Matern,
    Periodic,
    PoweredExponential,
    Spherical,
    Wave,
)
from spatialdiff.kernels.catalogue import CATALOGUE

ORACLES = json.loads((Path(__file__).parents[1] / "oracles" / "families.json").read_text())
F64 = torch.float64
TRAINABLE = {"Matern": "trainable_nu", "GeneralizedWendland": "trainable_kappa"}
# shape parameters of three members of a batch
BATCHES = {
    "Exponential": {},
    "Matern": {"nu": (0.4, 1.5, 3.0), "trainable_nu": True},
    "Gaussian": {},
    "PoweredExponential": {"alpha": (0.7, 1.5, 2.0)},
    "RationalQuadratic": {"alpha": (0.6, 2.0, 5.0)},
    "Cauchy": {"beta": (0.7, 2.0, 5.0)},
    "GeneralizedCauchy": {"alpha": (0.5, 1.0, 2.0), "beta": (4.0, 0.8, 2.0)},
    "Spherical": {},
    "Circular": {},
    "Cubic": {},
    "Askey": {"power": (1.6, 2.0, 3.3)},
    "GeneralizedWendland": {"kappa": (0.3, 1.0, 2.0), "mu": (2.2, 3.0, 4.0), "trainable_kappa": True},
    "Wave": {},
    "DampedCosine": {"damping": (1.1, 2.0, 4.0)},
    "Periodic": {"period": ((1.0,), (2.0,), (3.0,))},
}
FAMILIES = pytest.mark.parametrize("family", CATALOGUE, ids=lambda family: family.name)


def build(row, **options):
    shape = {key: float(value) for key, value in row["parameters"].items()}
    return getattr(kernels, row["family"])(**shape, **options)


def frequencies(w, d):
    omega = torch.zeros(len(w), d, dtype=F64)
    omega[:, -1] = torch.as_tensor(w, dtype=F64)
    return omega


def identity(row):
    return "-".join([row["family"], *row["parameters"].values()])


@pytest.mark.parametrize("row", ORACLES, ids=identity)
def test_correlation_and_derivatives_against_mpmath(row):
    """In ``r`` and in every shape parameter; closed forms and, for fixed smoothness, the integrals."""
    points = row["correlation"]
    r = torch.tensor([float(point["r"]) for point in points], dtype=F64, requires_grad=True)
    name = row["family"]
    variants = [{}]
    if name in TRAINABLE and float(next(iter(row["parameters"].values()))) > 0:
        variants.append({TRAINABLE[name]: True})
    for options in variants:
        kernel = build(row, **options)
        value = kernel.correlation(r)
        exact = torch.tensor([float(point["value"]) for point in points], dtype=F64)
        torch.testing.assert_close(value.detach(), exact, rtol=3e-13, atol=1e-15)
        (slope,) = torch.autograd.grad(value.sum(), r, retain_graph=True)
        exact = torch.tensor([float(point["d_r"]) for point in points], dtype=F64)
        torch.testing.assert_close(slope, exact, rtol=1e-10, atol=3e-15)
        for key in row["parameters"]:
            raw = dict(kernel.named_parameters()).get(f"raw_{key}")
            if raw is None:
                continue
            # the derivative in the parameter itself, through that of its raw form
            transform = getattr(kernel, f"raw_{key}_constraint").transform
            (inner,) = torch.autograd.grad(transform(raw), raw)
            if inner == 0:  # at the upper end of its interval
                continue
            for i, point in enumerate(points):
                (found,) = torch.autograd.grad(value[i], raw, retain_graph=True)
                assert (found / inner).item() == pytest.approx(float(point[f"d_{key}"]), rel=1e-9, abs=3e-15)


@pytest.mark.parametrize("row", [r for r in ORACLES if r["spectral_density"]], ids=identity)
def test_spectral_density_against_quadrature(row):
    """mpmath's Hankel transform of the definition, 1 to 3 dimensions, errors relative to the largest
    value.
    """
    kernel = build(row)
    dimensions = sorted({int(key.split(",")[0]) for key in row["spectral_density"]})
    for d in dimensions:
        entries = {
            float(key.split(",")[1]): float(value)
            for key, value in row["spectral_density"].items()
            if int(key.split(",")[0]) == d
        }
        found = kernel.spectral_density(frequencies(list(entries), d)).detach()
        exact = torch.tensor(list(entries.values()), dtype=F64)
        assert ((found - exact).abs().max() / exact.max()).item() < 1e-11


@pytest.mark.parametrize("nu", [0.3, 1.0, 3.7])
def test_matern_spectral_density_of_any_smoothness(nu):
    kernel = Matern(nu, 1.3, 1.7)
    for w in (0.3, 2.0):
        value, _ = scipy.integrate.quad(
            lambda r: kernel.at_lags(torch.tensor([[r]], dtype=F64)).item(),
            0,
            np.inf,
            weight="cos",
            wvar=w,
            epsabs=1e-9,
        )
        found = kernel.spectral_density(frequencies([w], 1)).item()
        assert found == pytest.approx(2 * value, rel=1e-7)


def smoothed(kernel, d, tau, panels):
    """``∫ S(ω) exp(-τ²|ω|²/2) dω/(2π)^d`` and ``E k(τ Z)``, ``Z`` standard normal, by Gauss–Legendre."""
    x, weight = np.polynomial.legendre.leggauss(24)

    def rule(edges):
        half = np.diff(edges)[:, None] / 2
        nodes = (edges[:-1, None] + half * (x + 1)).reshape(-1)
        return torch.from_numpy(nodes), torch.from_numpy((half * weight).reshape(-1))

    surface = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    w, rule_w = rule(np.concatenate([[0], np.geomspace(1e-12, 8.5 / tau, panels)]))
    density = kernel.spectral_density(frequencies(w, d))
    spectral = (rule_w * density * w ** (d - 1) * torch.exp(-0.5 * (tau * w) ** 2)).sum()
    r, rule_r = rule(np.concatenate([[0], np.geomspace(1e-9, 8.5, panels)]))
    lags = torch.zeros(len(r), d, dtype=F64)
    lags[:, 0] = tau * r
    normal = (rule_r * kernel.at_lags(lags) * r ** (d - 1) * torch.exp(-0.5 * r**2)).sum()
    return (
        spectral.item() * surface / (2 * math.pi) ** d,
        normal.item() * surface / (2 * math.pi) ** (d / 2),
    )


@FAMILIES
def test_spectral_density_normalisation(family):
    """``∫S = (2π)^d σ²``, each side averaged over a Gaussian (Parseval), so that rough fields converge
    too.
    """
    kernel = family.example(lengthscale=0.8, variance=1.7)
    if family.name == "Wave":  # see test_wave
        return
    for d in family.spectrum:
        found, expected = smoothed(kernel, d, 0.3, 160)
        # kinks of a compact support lie inside a panel
        assert found == pytest.approx(expected, rel=2e-7)
        if family.name not in ("Spherical", "Circular", "Cubic", "Askey"):
            assert found == pytest.approx(expected, rel=1e-9)


def test_wave_spectrum():
    """One dimension: a box; two: the projection of a sphere, whose mass in ``w < sin φ`` is ``1 - cos φ``."""
    kernel = Wave(0.5, 3.0)
    box = kernel.spectral_density(frequencies([0.0, 1.99, 2.01], 1)).tolist()
    assert box == pytest.approx([3 * math.pi * 0.5] * 2 + [0.0])
    phi = torch.linspace(0, 1.5, 20001, dtype=F64)
    w = torch.sin(phi) / 0.5
    density = kernel.spectral_density(frequencies(w, 2)).detach()
    mass = torch.trapezoid(2 * math.pi * w * density * torch.cos(phi) / 0.5, phi).item() / (2 * math.pi) ** 2
    assert mass == pytest.approx(3 * (1 - math.cos(1.5)), rel=1e-8)
    with pytest.raises(ValueError, match="a sphere of radius 1/lengthscale"):
        kernel.spectral_density(torch.zeros(1, 3))


def test_spectral_densities_of_long_memory_are_infinite_at_the_origin():
    for d in (1, 2, 3):
        for long, short in (
            (kernels.Cauchy(0.9 * d), kernels.Cauchy(d + 0.5)),
            (GeneralizedCauchy(1.0, 0.9 * d), GeneralizedCauchy(1.0, d + 0.5)),
            (kernels.RationalQuadratic(0.45 * d), kernels.RationalQuadratic(d / 2 + 0.25)),
        ):
            assert long.spectral_density(torch.zeros(1, d, dtype=F64)).item() == math.inf
            near, at = short.spectral_density(frequencies([1e-12, 0.0], d)).tolist()
            assert near == pytest.approx(at, rel=1e-4)
            assert at < math.inf


@FAMILIES
def test_gradients(family):
    """Covariance (twice) and spectral density in all parameters against finite differences, r = 0
    included.
    """
    kernel = family.example(lengthscale=0.9, variance=1.4)
    for name, option in TRAINABLE.items():
        if name == family.name:
            kernel = family.example(lengthscale=0.9, variance=1.4, **{option: True})
    names = [name for name, _ in kernel.named_parameters()]
    start = [parameter.detach().clone() for parameter in kernel.parameters()]
    h = torch.tensor([[0.0, 0.0], [0.1, -0.3], [0.02, 0.5], [-1.2, 0.4]], dtype=F64)

    def evaluate(method, x):
        def function(*values):
            return torch.func.functional_call(_Call(kernel, method), dict(zip(names, values, strict=True)), x)

        return function

    leaves = [value.requires_grad_() for value in start]
    names = [f"kernel.{name}" for name in names]
    assert torch.autograd.gradcheck(evaluate("at_lags", h), leaves, atol=1e-8, rtol=1e-6)
    assert torch.autograd.gradgradcheck(evaluate("at_lags", h), leaves, atol=1e-6, rtol=1e-5)
    for d in family.spectrum:
        if d == kernel.max_dimension and BATCHES[family.name]:
            continue  # the example is at the edge of its dimension, and a difference would step over it
        omega = torch.tensor([[0.0] * d, [0.4] * d, [3.0] * d], dtype=F64)
        if family.name == "Wave":
            omega = omega[:2]
        function = evaluate("spectral_density", omega)
        assert torch.autograd.gradcheck(function, leaves, atol=1e-7, rtol=1e-5)


class _Call(torch.nn.Module):
    def __init__(self, kernel, method):
        super().__init__()
        self.kernel, self.method = kernel, method

    def forward(self, x):
        return getattr(self.kernel, self.method)(x)


@FAMILIES
def test_batch_is_a_loop(family):
    shape = dict(BATCHES[family.name])
    options = {key: shape.pop(key) for key in ("trainable_nu", "trainable_kappa") if key in shape}
    kind = getattr(kernels, family.name)
    ell, variance = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64), torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    tensors = {key: torch.tensor(value, dtype=F64) for key, value in shape.items()}
    batch = kind(**tensors, lengthscale=ell, variance=variance, batch_shape=(3,), **options)
    singles = [
        kind(**{k: v[i] for k, v in tensors.items()}, lengthscale=ell[i], variance=variance[i], **options)
        for i in range(3)
    ]
    h = 0.7 * torch.randn(4, 5, 2, dtype=F64)
    assert batch.batch_shape == (3,)

    def same(method):
        torch.testing.assert_close(
            method(batch), torch.stack([method(k) for k in singles]), rtol=1e-12, atol=1e-14
        )

    same(lambda k: k.at_lags(h))
    same(lambda k: k.at_pairs(h, torch.zeros(2, dtype=F64)))
    same(lambda k: k.effective_range)
    for d in family.spectrum:
        if d <= batch.max_dimension:
            same(lambda k, d=d: k.spectral_density(2 * h[..., :1].expand(4, 5, d)))
    assert batch.max_dimension == min(k.max_dimension for k in singles)
    try:
        expected = torch.stack([k.microergodic for k in singles])
    except ValueError:
        with pytest.raises(ValueError, match="micro-ergodic"):
            _ = batch.microergodic
    else:
        torch.testing.assert_close(batch.microergodic, expected)


@FAMILIES
def test_many_frequencies_are_as_exact_as_few(family):
    """Beyond some number of frequencies a table is interpolated."""
    kernel = family.example(lengthscale=0.9)
    for d in family.spectrum:
        omega = 12 * torch.rand(6000, d, dtype=F64) + 1e-3
        many = kernel.spectral_density(omega)[:90].detach()
        few = kernel.spectral_density(omega[:90]).detach()
        largest = float(few.max())
        torch.testing.assert_close(many, few, rtol=0, atol=1e-11 * largest)


@FAMILIES
def test_float32(family):
    kernel = family.example(lengthscale=0.9, variance=1.4)
    h = torch.tensor([[0.0, 0.0], [0.1, -0.3], [0.02, 0.5], [-1.2, 0.4]], dtype=F64)
    single = kernel.at_lags(h.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), kernel.at_lags(h), rtol=1e-5, atol=1e-6)
    for d in family.spectrum:
        omega = torch.tensor([[0.0] * d, [0.3] * d], dtype=F64)
        density = kernel.spectral_density(omega.float())
        assert density.dtype == torch.float32
        torch.testing.assert_close(density.double(), kernel.spectral_density(omega), rtol=1e-5, atol=1e-6)
    assert kernel(h.float()).to_dense().dtype == torch.float32


@FAMILIES
def test_effective_range(family):
    """The first distance at which the correlation is 0.05."""
    kernel = family.example(variance=2.0)
    reach = kernel.effective_range
    assert reach.shape == (1, 1)
    h = torch.linspace(0, 1, 201, dtype=F64)[:, None] * reach.detach().reshape(1)
    correlation = kernel.at_lags(h) / kernel.variance
    assert correlation[-1].item() == pytest.approx(0.05, rel=1e-9)
    assert (correlation[:-1] > 0.05).all()


def test_periodic():
    kernel = Periodic((2.0, 3.0), (0.6, 1.1), 1.5)
    h = torch.randn(7, 2, dtype=F64)
    shifted = h + torch.tensor([4.0, -3.0])
    torch.testing.assert_close(kernel.at_lags(h), kernel.at_lags(shifted))
    product = Periodic(2.0, 0.6).at_lags(h[:, :1]) * Periodic(3.0, 1.1, 1.5).at_lags(h[:, 1:])
    torch.testing.assert_close(kernel.at_lags(h), product)
    omega, lines = kernel.spectral_lines(12)
    assert omega.shape == lines.shape == (1, 2, 13)
    z = 1 / np.array([0.6, 1.1]) ** 2
    exact = torch.from_numpy(scipy.special.ive(np.arange(13), z[:, None]))
    torch.testing.assert_close(lines[0].detach(), exact, rtol=0, atol=1e-15)
    torch.testing.assert_close(omega[0, 1].detach(), 2 * math.pi / 3 * torch.arange(13, dtype=F64))
    omega, lines = kernel.spectral_lines(30)
    phase = torch.cos(omega[0, 0] * h[0, 0])
    back = lines[0, 0, 0] + 2 * (lines[0, 0, 1:] * phase[1:]).sum()
    assert back.item() == pytest.approx(Periodic(2.0, 0.6).at_lags(h[:1, :1]).item(), abs=1e-9)
    assert Periodic(1.0, 0.9).effective_range.item() == math.inf
    with pytest.raises(ValueError, match="spectrum of lines"):
        kernel.spectral_density(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="3 axes, but there are 2 periods"):
        Periodic((1.0, 2.0)).at_lags(torch.zeros(1, 3))


def test_wendland_value_that_a_peer_gets_wrong():
    """κ = 2 in two dimensions at r = 0.3: 0.45295; gpytorch 1.15.2 gives 0.41060."""
    kernel = GeneralizedWendland(kappa=2, mu=4.0)
    value = kernel.at_lags(torch.tensor([[0.3, 0.0]], dtype=F64)).item()
    assert value == pytest.approx(0.7**6 * (1 + 6 * 0.3 + 35 / 3 * 0.09), rel=1e-14)
    assert value == pytest.approx(0.45295, abs=5e-6)


def test_special_cases():
    r = torch.linspace(0, 3, 50, dtype=F64)
    same = (
        (PoweredExponential(1.0), Matern(0.5)),
        (PoweredExponential(2.0, 2**0.5), Gaussian()),
        (GeneralizedCauchy(2.0, 3.0), kernels.Cauchy(3.0)),
        (kernels.RationalQuadratic(1.5, 1.0), kernels.Cauchy(3.0, 3**0.5)),
        (GeneralizedWendland(0, 2.5), Askey(2.5)),
    )
    for one, other in same:
        torch.testing.assert_close(one.at_lags(r[:, None]), other.at_lags(r[:, None]), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda ell, variance: Matern(0.8, ell, variance),
        lambda ell, variance: PoweredExponential(1.3, ell, variance),
        lambda ell, variance: GeneralizedCauchy(0.7, 3.0, ell, variance),
        lambda ell, variance: GeneralizedWendland(0.5, 4.5, ell, variance),
        lambda ell, variance: GeneralizedWendland(1, 5.0, ell, variance),
        lambda ell, variance: Askey(3.0, ell, variance),
    ],
)
def test_equal_microergodic_parameters_mean_equal_high_frequencies(make):
    """What identifies them: spectral densities with the same tail."""
    first = make(1.0, 1.0)
    second = make(2.0, (first.microergodic / make(2.0, 1.0).microergodic).item())
    omega = frequencies([3e3], 1)
    ratio = (first.spectral_density(omega) / second.spectral_density(omega)).item()
    assert ratio == pytest.approx(1.0, abs=0.02)
    assert first.microergodic.item() == pytest.approx(second.microergodic.item())
    with pytest.raises(ValueError, match="one length scale"):
        _ = make((1.0, 2.0), 1.0).microergodic


def test_wendland_microergodic_over_mu():
    """The constant of the tail in μ, which only GeneralizedWendland's formula has."""
    omega = frequencies([4e3], 1)
    kernel, other = GeneralizedWendland(0.5, 4.5), GeneralizedWendland(0.5, 6.0)
    ratio = (kernel.spectral_density(omega) / other.spectral_density(omega)).item()
    assert ratio == pytest.approx((kernel.microergodic / other.microergodic).item(), rel=0.02)


@pytest.mark.parametrize(
    ("kernel", "largest"),
    [
        (Spherical(), 3),
        (Circular(), 2),
        (Cubic(), 3),
        (Wave(), 3),
        (Askey(2.0), 3),
        (Askey(2.49), 3),
        (Askey(1.0), 1),
        (GeneralizedWendland(1, 3.0), 3),
        (GeneralizedWendland(0.7, 2.19), 1),
        (GeneralizedWendland(2), 3),
        (DampedCosine(0.99), 1),
        (DampedCosine(1.0), 2),
        (DampedCosine(3**0.5), 3),
        (DampedCosine(1 / math.tan(math.pi / 8)), 4),
    ],
    ids=repr,
)
def test_dimension_is_enforced(kernel, largest):
    assert kernel.max_dimension == largest
    kernel.check_dimension(largest)
    kernel.at_lags(torch.zeros(2, largest))
    for call in (kernel.at_lags, kernel.spectral_density):
        with pytest.raises(ValueError, match=f"positive definite .* {largest + 1} coordinates"):
            call(torch.zeros(2, largest + 1))


def test_invalid_shapes_are_refused():
    for alpha in (2.1, 0.0, -1.0, math.nan):
        for family in (PoweredExponential, GeneralizedCauchy):
            with pytest.raises(ValueError, match="alpha must be"):
                family(alpha)
    with pytest.raises(ValueError, match="beta must be positive"):
        GeneralizedCauchy(1.0, -1.0)
    with pytest.raises(ValueError, match="Askey is positive definite"):
        Askey(0.9)
    with pytest.raises(ValueError, match="mu ≥"):
        GeneralizedWendland(1.0, 1.9)
    with pytest.raises(ValueError, match="kappa must be at least 0"):
        GeneralizedWendland(-0.1)
    with pytest.raises(ValueError, match="trainable_kappa=True"):
        GeneralizedWendland(torch.tensor([1.0, 2.0]), 4.0, batch_shape=(2,))
    with pytest.raises(ValueError, match="1, 2 and 3 dimensions, got 4"):
        PoweredExponential(1.0).spectral_density(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="alpha = 2"):
        _ = PoweredExponential(2.0).microergodic
    with pytest.raises(ValueError, match="no micro-ergodic"):
        _ = Gaussian().microergodic


def test_a_parameter_trained_out_of_its_dimension_is_refused():
    kernel = Askey(2.0)
    with torch.no_grad():
        kernel.raw_power.sub_(0.1)
    with pytest.raises(ValueError, match=r"power = 1\.8"):
        kernel.at_lags(torch.zeros(1, 3))


@FAMILIES
def test_repr_builds_the_kernel_again(family):
    kernel = family.example(lengthscale=0.5, variance=3.0)
    again = eval(repr(kernel), dict(vars(kernels)))
    h = torch.rand(5, 2, dtype=F64)
    torch.testing.assert_close(again.at_lags(h), kernel.at_lags(h))
