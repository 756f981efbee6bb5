"""Models beyond one isotropic family: simulated from, fitted, and recovered within their standard errors.

A bound of 4 standard errors on every parameter is passed by a right fit with probability 0.999 and more.
"""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting.parameters import KernelParameters
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
)

F64 = torch.float64
SIGMAS = 4.0


def points(n, sides, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sd.Points(
        torch.rand(n, len(sides), dtype=F64, generator=generator) * torch.tensor(sides, dtype=F64)
    )


def simulate(kernel, domain, number, seed=1):
    """Exact draws, ``(number, n)`` or ``(number, C, n)``."""
    model = KernelParameters(kernel)
    covariance = model.matrix(model.start(), domain.sites()).detach()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(number, len(covariance), dtype=F64, generator=generator)
    x = draws @ torch.linalg.cholesky(covariance).T
    channels = len(covariance) // domain.size
    return x.reshape(number, channels, domain.size) if channels > 1 else x.reshape(number, *domain.shape)


def check(result, truth):
    assert result.converged
    assert result.warnings == []
    scores = {}
    for name, value in truth.items():
        estimate, error = (
            (result.parameters[name], result.standard_errors[name])
            if name in result.parameters
            else result.derived[name]
        )
        assert 0.0 < error < 0.5 * max(abs(value), 0.5)
        scores[name] = (estimate - value) / error
    assert max(map(abs, scores.values())) < SIGMAS, scores


def test_direction_and_ratio_of_anisotropy():
    domain = sd.Grid((12, 12), spacing=0.8)
    truth = Anisotropic(Matern(1.5, 2.0, 1.5), math.radians(65), ratios=0.4) + Nugget(0.1)
    start = Anisotropic(Matern(1.5), 0.0, ratios=1.0) + Nugget(0.1)
    result = sd.fit(start, simulate(truth, domain, 5), domain, mean=None)
    angle, ratio, length = (result.parameters[name] for name in ("angles", "scales", "lengthscale"))
    assert -math.pi / 2 < angle <= math.pi / 2
    if ratio > 1.0:
        # the same ellipse by its minor axis
        angle, length, ratio = angle - math.copysign(math.pi / 2, angle), length * ratio, 1.0 / ratio
        assert length == pytest.approx(2.0, rel=0.3)
        assert ratio == pytest.approx(0.4, abs=4.0 * result.standard_errors["scales"] * ratio**2)
        off = (angle - math.radians(65) + math.pi / 2) % math.pi - math.pi / 2
        assert abs(off) < SIGMAS * result.standard_errors["angles"]
    else:
        check(result, {"angles": math.radians(65), "scales": 0.4, "lengthscale": 2.0, "variance": 1.5})
    # along its principal axes
    major, minor = (result.derived[f"effective_range[{axis}]"][0] for axis in (0, 1))
    assert minor / major == pytest.approx(result.parameters["scales"])


def test_smoothness():
    domain = sd.Grid((12, 12), spacing=0.4)
    truth = Matern(1.1, 0.8, 1.5)
    result = sd.fit(Matern(2.0, trainable_nu=True), simulate(truth, domain, 4), domain, mean=None, starts=2)
    check(result, {"nu": 1.1, "lengthscale": 0.8, "variance": 1.5})
    value, error = result.derived["microergodic"]
    kernel = result.kernel
    assert value == pytest.approx(kernel.microergodic.item())
    assert 0.0 < error < value
    assert abs(math.log(value / truth.microergodic.item())) < SIGMAS * error / value


def field(values):
    return GridField(torch.as_tensor(values, dtype=F64), spacing=[5.0, 5.0], trainable=True)


def test_length_scales_that_vary_over_the_domain():
    domain = points(150, (10.0, 10.0))
    lengths = torch.tensor([[0.6], [1.0], [2.0]], dtype=F64)
    # the same along the second axis: two columns of one value each, tied
    truth = Nonstationary(Matern(1.5, 1.0, 1.5), field(lengths.expand(3, 2))) + Nugget(0.05)
    start = Nonstationary(Matern(1.5), GridField(torch.ones(3, 2, dtype=F64), [5.0, 10.0], trainable=True))
    ties = [(f"lengthscale[{i},0]", f"lengthscale[{i},1]") for i in range(3)]
    truth = Nonstationary(Matern(1.5, 1.0, 1.5), GridField(lengths.expand(3, 2), [5.0, 10.0])) + Nugget(0.05)
    result = sd.fit(start + Nugget(0.1), simulate(truth, domain, 6), domain, mean=None, ties=ties, starts=2)
    assert "lengthscale" in result.held
    check(result, {f"lengthscale[{i},1]": float(lengths[i, 0]) for i in range(3)} | {"variance": 1.5})


def test_standard_deviations_that_vary_over_the_domain():
    domain = points(100, (10.0, 10.0))
    deviations = torch.tensor([[0.5, 0.5], [2.0, 2.0]], dtype=F64)
    truth = Nonstationary(Matern(0.5, 1.0, 1.0), 1.5, standard_deviation=GridField(deviations, [10.0, 10.0]))
    start = Nonstationary(
        Matern(0.5),
        1.0,
        standard_deviation=GridField(torch.ones(2, 2, dtype=F64), [10.0, 10.0], trainable=True),
    )
    ties = [(f"standard_deviation[{i},0]", f"standard_deviation[{i},1]") for i in range(2)]
    result = sd.fit(start, simulate(truth, domain, 6), domain, mean=None, ties=ties, starts=2)
    check(
        result,
        {"standard_deviation[0,0]": 0.5, "standard_deviation[1,0]": 2.0, "nonstationary.lengthscale": 1.5},
    )


def test_separable_in_space_and_time():
    domain = points(200, (5.0, 5.0, 40.0))
    truth = Separable(Matern(1.5, 1.0, 2.0), Exponential(6.0))
    start = Separable(Matern(1.5), Exponential(1.0))
    result = sd.fit(
        start, simulate(truth, domain, 6), domain, mean=None, fixed=["exponential.variance"], starts=2
    )
    check(result, {"matern.lengthscale": 1.0, "exponential.lengthscale": 6.0, "matern.variance": 2.0})


def test_gneiting_in_space_and_time():
    domain = points(200, (5.0, 5.0, 40.0))
    truth = Gneiting(Matern(0.5, 1.5, 2.0), 4.0, alpha=0.7, beta=0.8)
    start = Gneiting(Matern(0.5), 1.0, alpha=0.7, beta=0.8)
    result = sd.fit(
        start, simulate(truth, domain, 8), domain, mean=None, fixed={"alpha": 0.7, "beta": 0.8}, starts=2
    )
    check(result, {"lengthscale": 1.5, "timescale": 4.0, "variance": 2.0})
    duration, _ = result.derived["effective_duration"]
    # βd/2 + δ with two axes of space
    expected = result.parameters["timescale"] * (20.0 ** (1 / 0.8) - 1) ** (1 / 1.4)
    assert duration == pytest.approx(expected)


def test_intrinsic_coregionalisation():
    domain = points(90, (10.0, 10.0))
    matrix = torch.tensor([[2.0, -0.8], [-0.8, 1.0]], dtype=F64)
    truth = Coregionalization([(matrix, Matern(1.5, 1.5))])
    start = Coregionalization([(torch.eye(2), Matern(1.5))])
    result = sd.fit(start, simulate(truth, domain, 6), domain, mean=None, starts=2)
    assert result.held == ("variance",)
    root = torch.linalg.cholesky(matrix)
    check(
        result,
        {
            "lengthscale": 1.5,
            "L[0,0]": float(root[0, 0]),
            "L[1,0]": float(root[1, 0]),
            "L[1,1]": float(root[1, 1]),
            "B[0,0]": 2.0,
            "B[0,1]": -0.8,
            "B[1,1]": 1.0,
            "correlation[0,1]": -0.8 / math.sqrt(2.0),
        },
    )


def test_matrices_of_the_intrinsic_model_in_closed_form():
    """At a fixed correlation R the likelihood is highest at B = Σ_i X_i R⁻¹ X_iᵀ / (N n), X_i ``(C, n)``."""
    domain = points(60, (10.0, 10.0))
    matrix = torch.tensor([[2.0, -0.8], [-0.8, 1.0]], dtype=F64)
    x = simulate(Coregionalization([(matrix, Matern(1.5, 1.5))]), domain, 3)
    start = Coregionalization([(torch.eye(2), Matern(1.5, 1.5))])
    result = sd.fit(start, x, domain, mean=None, fixed=["lengthscale"], starts=1)
    correlation = Matern(1.5, 1.5)
    sites = domain.sites()
    gram = torch.linalg.inv(correlation.at_pairs(sites[:, None], sites[None]).detach())
    expected = torch.einsum("ics,st,idt->cd", x, gram, x) / (3 * 60)
    found = [result.derived[name][0] for name in ("B[0,0]", "B[0,1]", "B[1,1]")]
    assert found == pytest.approx(
        [float(expected[0, 0]), float(expected[0, 1]), float(expected[1, 1])], rel=1e-4
    )


def test_linear_model_of_coregionalisation_with_gaps():
    """Two structures; a third of the second channel is missing in half of the fields."""
    domain = points(80, (10.0, 10.0))
    first = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=F64)
    second = torch.tensor([[0.2, 0.0], [0.0, 0.4]], dtype=F64)
    truth = Coregionalization([(first, Matern(1.5, 1.5)), (second, Nugget(1.0))])
    start = Coregionalization([(torch.eye(2), Matern(1.5)), (torch.eye(2), Nugget(1.0))])
    x = simulate(truth, domain, 8)
    x[:4, 1, :27] = math.nan
    result = sd.fit(start, x, domain, missing="omit", starts=2)
    expected = {
        "B1[0,0]": 2.0,
        "B1[0,1]": 1.0,
        "B1[1,1]": 1.0,
        "B2[0,0]": 0.2,
        "B2[1,1]": 0.4,
        "lengthscale": 1.5,
    }
    assert result.converged
    for name, value in expected.items():
        estimate, error = result.derived.get(
            name, (result.parameters.get(name), result.standard_errors.get(name))
        )
        assert abs(estimate - value) < SIGMAS * error, name
    # the covariance of the fit is the joint one of both channels
    assert tuple(result.covariance.double().sample((2,)).shape) == (2, 2, 80)


def test_a_matrix_of_lower_rank_stays_so():
    domain = points(60, (10.0, 10.0))
    column = torch.tensor([[1.0], [-0.5], [2.0]], dtype=F64)
    truth = Coregionalization([(column @ column.T, Matern(1.5, 1.5)), (0.1 * torch.eye(3), Nugget(1.0))])
    start = Coregionalization([(torch.ones(3, 3), Matern(1.5)), (torch.eye(3), Nugget(1.0))])
    result = sd.fit(start, simulate(truth, domain, 6), domain, mean=None, starts=2)
    matrix, _ = result.kernel.terms[0]
    assert int(torch.linalg.matrix_rank(matrix)) == 1
    for row, value in enumerate(column[:, 0].tolist()):
        name = f"L1[{row},0]"
        assert abs(result.parameters[name] - value) < SIGMAS * result.standard_errors[name]


@pytest.mark.parametrize("scales", [(1e3, 1e3), (1e-4, 1e-4), (1.0, 1e3)])
def test_matrices_follow_the_units_of_their_channels(scales):
    sites = points(60, [1.0, 1.0])

    def start(units):
        matrices = [
            torch.diag(units) @ torch.tensor([[a, b], [b, a]], dtype=F64) @ torch.diag(units)
            for a, b in ((0.8, 0.4), (0.2, 0.1))
        ]
        return Coregionalization([(matrices[0], Exponential(0.3)), (matrices[1], Nugget(1.0))])

    one, units = torch.ones(2, dtype=F64), torch.tensor(scales, dtype=F64)
    fields = simulate(start(one), sites, 3)
    plain = sd.fit(start(one), fields, sites, starts=1)
    scaled = sd.fit(start(units), fields * units[:, None], sites, starts=1)
    assert scaled.converged
    shift = plain.log_likelihood - 3 * 60 * float(units.log().sum())
    assert math.isclose(scaled.log_likelihood, shift, rel_tol=0.0, abs_tol=1e-5)
    for name, value in plain.parameters.items():
        unit = scales[int(name[3])] if name.startswith("L") else 1.0
        error = plain.standard_errors[name]
        assert abs(scaled.parameters[name] / unit - value) <= 0.01 * error
        assert math.isclose(scaled.standard_errors[name] / unit, error, rel_tol=0.01)
    low, high = plain.interval("L1[1,0]", kind="profile")
    ends = scaled.interval("L1[1,0]", kind="profile")
    for end, expected in zip(ends, (low, high), strict=True):
        assert math.isclose(end / scales[1], expected, rel_tol=0.01, abs_tol=0.01)
