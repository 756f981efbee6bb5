"""Parameters of every kind of kernel: names, transformations, bounds, ties, and the covariance they give."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting.naming import triangular
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.scales import Scales
from spatialdiff.fitting.starts import channel_covariance, coordinates_of, set_bounds, starting_points
from spatialdiff.kernels import (
    Anisotropic,
    Coregionalization,
    Exponential,
    Gneiting,
    GridField,
    Matern,
    Nonstationary,
    Nugget,
    Separable,
    SphericalExponential,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


SITES = torch.rand(7, 2, dtype=F64, generator=generator())
MATRIX = torch.tensor([[2.0, -0.5], [-0.5, 1.0]], dtype=F64)


def values(shape, trainable=True, shift=0.5):
    return GridField(
        torch.rand(shape, dtype=F64, generator=generator(1)) + shift, [1.0, 1.0], trainable=trainable
    )


KERNELS = {
    "sum": Matern(1.5, [0.3, 0.5]) + Nugget(0.2),
    "smoothness": Matern(1.2, 0.3, trainable_nu=True),
    "anisotropic": Anisotropic(Matern(1.5, 0.4), 0.7, ratios=0.5) + Nugget(0.1),
    "anisotropic lengths": Anisotropic(Matern(1.5), 0.7, lengthscales=[0.4, 0.8]),
    "local": Nonstationary(
        Matern(1.5, 0.5, 2.0), values((2, 2, 2)), angles=values((2, 2)), standard_deviation=values((2, 2))
    ),
    "constant local": Nonstationary(Matern(1.5), [0.4, 0.8], angles=0.4),
    "separable": Separable(Matern(1.5, 0.3), Exponential(0.5), axes=((0,), (1,))),
    "gneiting": Gneiting(Matern(0.5, 0.4), 0.7, 0.6, 0.5, 0.2),
}
JOINT = {
    "full": Coregionalization([(MATRIX, Matern(1.5, 0.4)), (torch.eye(2), Exponential(0.2) + Nugget(0.3))]),
    "singular": Coregionalization([(torch.ones(2, 2), Matern(1.5, 0.4, 2.0))]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_matrix_is_the_kernels_and_differentiable(name):
    kernel = KERNELS[name]
    model = KernelParameters(kernel)
    theta = model.start()
    expected = kernel.at_pairs(SITES[:, None], SITES[None]).detach()
    torch.testing.assert_close(model.matrix(theta, SITES), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.fitted(theta, F64).at_pairs(SITES[:, None], SITES[None]), expected)
    assert torch.autograd.gradcheck(lambda t: model.matrix(t, SITES), theta.requires_grad_(), atol=1e-6)
    assert len(set(model.names)) == len(theta)


@pytest.mark.parametrize("name", JOINT)
def test_joint_matrix_is_channel_after_channel(name):
    kernel = JOINT[name]
    model = KernelParameters(kernel)
    theta = model.start()
    expected = kernel.cross_pairs(SITES[:, None], SITES[None]).permute(2, 0, 3, 1).reshape(14, 14).detach()
    torch.testing.assert_close(model.matrix(theta, SITES), expected)
    fitted = model.fitted(theta, F64)
    torch.testing.assert_close(
        fitted.cross_pairs(SITES[:, None], SITES[None]), kernel.cross_pairs(SITES[:, None], SITES[None])
    )
    assert torch.autograd.gradcheck(lambda t: model.matrix(t, SITES), theta.requires_grad_(), atol=1e-6)


def test_names_of_matrices_and_what_is_held():
    model = KernelParameters(JOINT["full"])
    assert model.names == [
        *("L1[0,0]", "L1[1,0]", "L1[1,1]", "L2[0,0]", "L2[1,0]", "L2[1,1]"),
        *("matern.lengthscale", "exponential.lengthscale", "nugget"),
    ]
    # the nugget of the second term is relative to its exponential
    assert model.held == ["matern.variance", "exponential.variance"]
    assert KernelParameters(JOINT["singular"]).names == ["L[0,0]", "L[1,0]", "lengthscale"]
    natural = model.natural(model.start())
    assert natural["L1[0,0]"] == pytest.approx(math.sqrt(2.0))
    assert natural["L1[1,0]"] == pytest.approx(-0.5 / math.sqrt(2.0))


@pytest.mark.parametrize("shape", [(3, 3), (3, 2), (4, 1)])
def test_one_root_for_one_matrix(shape):
    root = torch.randn(shape, dtype=F64, generator=generator(2))
    turned = root @ torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=F64, generator=generator(3))).Q
    lower = triangular(root)
    torch.testing.assert_close(lower @ lower.T, root @ root.T)
    torch.testing.assert_close(triangular(turned), lower)
    assert float(lower.diagonal().min()) > 0.0
    assert torch.equal(lower, lower.tril())


def test_local_quantities_hold_what_they_replace():
    model = KernelParameters(KERNELS["local"])
    assert model.held == ["lengthscale", "variance"]
    assert {"lengthscale[0,1,1]", "angles[1,0]", "standard_deviation[1,1]"} <= set(model.names)
    kinds = {p.name: (p.kind, p.log) for p in model.free}
    assert kinds["lengthscale[0,1,1]"] == ("length", True)
    assert kinds["angles[1,0]"] == ("angle", False)
    assert kinds["standard_deviation[1,1]"] == ("deviation", True)
    assert KernelParameters(KERNELS["anisotropic lengths"]).held == ["lengthscale"]
    with pytest.raises(ValueError, match="anisotropy have to stay positive definite"):
        KernelParameters(
            Nonstationary(
                Matern(), anisotropy=GridField(torch.eye(2).expand(2, 2, 2, 2), [1.0, 1.0], trainable=True)
            )
        )


def test_networks_are_fitted_too():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Softplus()).double()
    model = KernelParameters(Nonstationary(Matern(), network))
    assert model.names == ["variance", "weight[0]", "weight[1]", "bias"]
    assert model.held == ["lengthscale"]
    assert torch.autograd.gradcheck(
        lambda t: model.matrix(t, SITES), model.start().requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("turns", [-2, 1, 3])
def test_angles_are_reported_within_half_a_turn(turns):
    model = KernelParameters(KERNELS["anisotropic"])
    theta = model.start()
    position = model.names.index("angles")
    expected = model.matrix(theta, SITES)
    theta[position] += turns * math.pi
    assert model.natural(theta)["angles"] == pytest.approx(0.7)
    torch.testing.assert_close(model.matrix(theta, SITES), expected)


def test_axes_of_length_scales():
    separable = KernelParameters(Separable(Matern(1.5, [0.3, 0.4]), Exponential(0.5)))
    seen = {p.name: coordinates_of(p, 3) for p in separable.free if p.is_lengthscale}
    assert seen == {"lengthscale[0]": (0,), "lengthscale[1]": (1,), "lengthscale": (2,)}
    gneiting = KernelParameters(Gneiting(Matern(0.5, 0.4), 0.7, time_axis=1))
    seen = {p.name: coordinates_of(p, 3) for p in gneiting.free if p.is_lengthscale}
    assert seen == {"lengthscale": (0, 2), "timescale": (1,)}


def test_ties():
    kernel = Matern(1.5, [0.3, 0.5]) + Exponential([1.0, 2.0], 0.5)
    model = KernelParameters(kernel, ties={"matern.lengthscale[1]": "matern.lengthscale[0]"})
    assert len(model.names) == 5
    theta = model.start()
    natural = model.natural(theta)
    assert natural["matern.lengthscale[1]"] == natural["matern.lengthscale[0]"] == pytest.approx(0.3)
    # the gradient of a shared value is that of both
    isotropic = Matern(1.5, 0.3) + Exponential([1.0, 2.0], 0.5)
    x, y = SITES[:, None], SITES[None]
    torch.testing.assert_close(model.matrix(theta, SITES), isotropic.at_pairs(x, y).detach())
    assert torch.autograd.gradcheck(lambda t: model.matrix(t, SITES), theta.requires_grad_(), atol=1e-6)
    errors = model.standard_errors(theta.detach(), torch.eye(5, dtype=F64) * 0.01)
    assert errors["matern.lengthscale[1]"] == errors["matern.lengthscale[0]"] == pytest.approx(0.03)
    groups = KernelParameters(
        kernel, ties=[["matern.lengthscale"], ["matern.variance", "exponential.variance"]]
    )
    assert len(groups.names) == 4
    assert groups.held == []


def test_ties_to_what_is_held_and_within_bounds():
    kernel = Matern(1.5, [0.3, 0.5])
    model = KernelParameters(kernel, {"lengthscale[0]": 0.7}, ties={"lengthscale[1]": "lengthscale[0]"})
    assert model.natural(model.start())["lengthscale[1]"] == 0.7
    assert model.names == ["variance"]
    model = KernelParameters(
        kernel, bounds={"lengthscale[0]": (0.1, 0.9), "lengthscale[1]": (0.2, 2.0)}, ties=["lengthscale"]
    )
    assert (model.free[0].lower, model.free[0].upper) == (0.2, 0.9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ties": {"lengthscale[1]": "range"}}, "has no parameter 'range'"),
        ({"ties": {"lengthscale[0]": "lengthscale[0]"}}, "tied twice, or to itself"),
        (
            {"ties": [["lengthscale"], ["lengthscale[1]", "variance"], ["variance", "lengthscale[0]"]]},
            "tied twice",
        ),
        ({"ties": [["variance"]]}, "at least two parameters"),
        (
            {"ties": {"lengthscale[1]": "lengthscale[0]"}, "fixed": ["lengthscale[1]"]},
            r"lengthscale\[1\] is held",
        ),
        (
            {"ties": ["lengthscale"], "bounds": {"lengthscale[0]": (1, 2), "lengthscale[1]": (3, 4)}},
            "no value is",
        ),
    ],
)
def test_impossible_ties_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        KernelParameters(Matern(1.5, [0.3, 0.5]), **options)


def domains():
    scattered = torch.rand(60, 2, dtype=F64, generator=generator(4)) * 10
    grid = sd.Grid((8, 9), spacing=[1.0, 2.0])
    yield grid
    yield sd.Grid((8, 9), periodic=(True, False))
    yield grid.masked(torch.rand(8, 9, generator=generator(5)) < 0.7)
    yield sd.RectilinearGrid([torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.arange(6.0) ** 1.5])
    yield sd.Points(scattered)
    yield sd.Mesh.delaunay(scattered)
    yield sd.Sphere((8, 12), radius=3.0)
    yield sd.Graph.grid((6, 7))


@pytest.mark.parametrize("domain", list(domains()), ids=lambda d: type(d).__name__)
def test_bounds_and_starts_on_every_domain(domain):
    kernel = SphericalExponential(0.3) if isinstance(domain, sd.Sphere) else Matern(1.5) + Nugget(0.1)
    fields = torch.randn(5, *domain.shape, dtype=F64, generator=generator(6)) * 3.0
    data = observe(fields, domain, None)
    model = KernelParameters(kernel)
    set_bounds(model, data)
    points = starting_points(model, data, 4)
    assert len(points) == 4
    for point in points:
        for value, p in zip(point.tolist(), model.free, strict=True):
            low, high = p.theta_bounds
            assert math.isfinite(low)
            assert math.isfinite(high)
            assert low <= value <= high
    # k(0) of the first is the variance of the data
    natural = model.natural(points[0])
    total = natural["variance"] + natural.get("nugget", 0.0)
    assert total == pytest.approx(float(data.variance()), rel=1e-6)


def smooth(domain, length, number=200):
    kernel = KernelParameters(Exponential(length))
    covariance = kernel.matrix(kernel.start(), domain.sites()).detach()
    draws = torch.randn(number, domain.size, dtype=F64, generator=generator(7))
    return (draws @ torch.linalg.cholesky(covariance).T).reshape(number, *domain.shape)


@pytest.mark.parametrize(
    "domain",
    [sd.Grid((20, 20), spacing=0.5), sd.Points(torch.rand(300, 2, dtype=F64, generator=generator(8)) * 10)],
    ids=lambda d: type(d).__name__,
)
def test_correlation_length_of_an_exponential(domain):
    """exp(-h/ℓ) has fallen to 1/e at ℓ; bins and averages along axes leave a quarter."""
    scales = Scales(observe(smooth(domain, 1.5), domain, None))
    assert scales.length(scales.every) == pytest.approx(1.5, rel=0.25)
    assert scales.extent((0,)) == pytest.approx(10.0, rel=0.05)


def test_correlation_length_with_gaps_is_that_without():
    domain = sd.Points(torch.rand(300, 2, dtype=F64, generator=generator(8)) * 10)
    x = smooth(domain, 1.5)
    x[torch.rand(x.shape, generator=generator(9)) < 0.3] = math.nan
    scales = Scales(observe(x, domain, None, missing="omit"))
    assert scales.length((0, 1)) == pytest.approx(1.5, rel=0.25)


def test_covariance_of_channels_that_are_not_observed_together_everywhere():
    x = torch.randn(4000, 2, 3, dtype=F64, generator=generator(10)) @ torch.eye(3, dtype=F64)
    root = torch.linalg.cholesky(MATRIX)
    x = torch.einsum("cd,ids->ics", root, x)
    x[:2000, 1, 0] = math.nan
    found = channel_covariance(observe(x, sd.Points(torch.arange(3.0)), None, missing="omit"))
    # variance of a product of Gaussians is at most 2·σ⁴ = 8; 10000 pairs or more
    assert float((found - MATRIX).abs().max()) < 5.0 * math.sqrt(8.0 / 10_000)
