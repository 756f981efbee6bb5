"""Warnings where the data cannot tell parameters apart, and what they do tell: micro-ergodic parameters."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting import FitWarning
from spatialdiff.fitting.derived import derived_quantities
from spatialdiff.fitting.diagnostics import check_counts, complaints
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import (
    Anisotropic,
    Askey,
    Coregionalization,
    Exponential,
    Gaussian,
    GeneralizedCauchy,
    GeneralizedWendland,
    Gneiting,
    Matern,
    Nugget,
    PoweredExponential,
    Separable,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


POINTS = sd.Points(torch.rand(30, 2, dtype=F64, generator=generator()) * 8)


def simulate(kernel, number, seed=1):
    model = KernelParameters(kernel)
    covariance = model.matrix(model.start(), POINTS.sites()).detach()
    draws = torch.randn(number, 30, dtype=F64, generator=generator(seed))
    return draws @ torch.linalg.cholesky(covariance).T


def derive(kernel, **options):
    """Derived quantities with a covariance of the estimates of everyday size."""
    model = KernelParameters(kernel)
    p = len(model.names)
    root = 0.1 * torch.randn(p, p, dtype=F64, generator=generator(2))
    covariance = root @ root.T
    return model, covariance, derived_quantities(model, model.start(), covariance, **options)


@pytest.mark.parametrize(
    "kernel",
    [
        Matern(1.5, 0.7, 2.0),
        Matern(0.8, 0.7, 2.0, trainable_nu=True),
        Exponential(0.7, 2.0),
        PoweredExponential(1.3, 0.7, 2.0),
        GeneralizedCauchy(1.3, 0.9, 0.7, 2.0),
        GeneralizedWendland(0.7, 3.5, 4.0, 2.0),
        Askey(2.0, 4.0, 2.0),
    ],
    ids=repr,
)
def test_micro_ergodic_parameter_of_every_family_that_has_one(kernel):
    model, covariance, found = derive(kernel + Nugget(0.1))
    nu = getattr(kernel, "nu", None)
    ratio = {1.5: "variance/lengthscale^3", 0.5: "variance/lengthscale"}
    name = ratio[nu] if isinstance(nu, float) else "microergodic"
    value, error = found[name]
    assert value == pytest.approx(kernel.microergodic.item(), rel=1e-12)
    # the delta method with the gradient by autograd, in the logarithms of the parameters
    theta = model.start().requires_grad_()
    raw = {
        path.removeprefix("kernels.0."): v
        for path, v in model.raw_values(theta).items()
        if "kernels.0." in path
    }

    class Ask(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self):
            return self.inner.microergodic

    asked = torch.func.functional_call(Ask(kernel), {f"inner.{k}": v for k, v in raw.items()}, ())
    (slope,) = torch.autograd.grad(asked.sum(), theta)
    assert error == pytest.approx(float(slope @ covariance @ slope) ** 0.5, rel=1e-6)


def test_families_that_determine_both_have_none():
    _, _, found = derive(Gaussian(0.7, 2.0))
    assert set(found) == {"effective_range"}


def test_derived_of_sums_nuggets_and_directions():
    kernel = Matern(1.5, 0.7, 2.0) + Exponential(3.0, 1.0) + Nugget(0.5)
    model, covariance, found = derive(kernel)
    assert set(found) == {
        "matern.effective_range",
        "matern.variance/lengthscale^3",
        "exponential.effective_range",
        "exponential.variance/lengthscale",
        "nugget/sill",
    }
    value, error = found["nugget/sill"]
    assert value == pytest.approx(0.5 / 3.5)
    # d log(n/(v1 + v2 + n)): -v1/s, -v2/s, 1 - n/s
    slope = torch.zeros(len(model.names), dtype=F64)
    for name, share in {
        "matern.variance": -2 / 3.5,
        "exponential.variance": -1 / 3.5,
        "nugget": 3 / 3.5,
    }.items():
        slope[model.names.index(name)] = share
    assert error == pytest.approx(value * float(slope @ covariance @ slope) ** 0.5, rel=1e-6)
    _, _, found = derive(Anisotropic(Exponential(2.0), 0.3, ratios=0.25))
    assert found["effective_range[0]"][0] == pytest.approx(-2.0 * math.log(0.05))
    assert found["effective_range[1]"][0] == pytest.approx(-0.5 * math.log(0.05))
    assert "variance/lengthscale" not in found


def test_derived_of_space_and_time():
    _, _, found = derive(Gneiting(Exponential(2.0), 3.0, 1.0, 1.0), dimension=3)
    assert found["effective_range"][0] == pytest.approx(-2.0 * math.log(0.05))
    assert found["effective_duration"][0] == pytest.approx(3.0 * math.sqrt(19.0))
    _, _, found = derive(Separable(Exponential(2.0), Exponential(3.0)))
    assert found["exponential2.effective_range"][0] == pytest.approx(-3.0 * math.log(0.05))


def test_matrix_entries_have_errors_by_the_delta_method():
    matrix = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=F64)
    model, covariance, found = derive(Coregionalization([(matrix, Exponential(1.0))]))
    assert [found[f"B[{i},{j}]"][0] for i, j in ((0, 0), (0, 1), (1, 1))] == pytest.approx([4.0, 1.0, 2.0])
    assert found["correlation[0,1]"][0] == pytest.approx(1.0 / math.sqrt(8.0))
    # B01 = L00 L10 with θ = (log L00, L10, ...): slopes B01 and L00
    slope = torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=F64)
    assert model.names[:2] == ["L[0,0]", "L[1,0]"]
    assert found["B[0,1]"][1] == pytest.approx(float(slope @ covariance @ slope) ** 0.5, rel=1e-6)


def test_fewer_data_than_parameters():
    kernel = Matern(1.5, [1.0, 1.0]) + Nugget(0.1)
    data = observe(simulate(Exponential(1.0), 1)[:, :5], sd.Points(POINTS.sites()[:5]), "constant")
    with pytest.raises(
        ValueError, match=r"5 observed values are too few for 5 parameters \(4 of the kernel, 1 of"
    ):
        check_counts(KernelParameters(kernel), data)
    check_counts(KernelParameters(kernel, ties=["lengthscale"]), data)
    with pytest.raises(ValueError, match="5 observed values are too few"):
        sd.fit(kernel, data.values[0, 0], data.domain, mean="constant")


def test_a_direction_that_is_not_there():
    kernel = Anisotropic(Exponential(1.5), 0.3, ratios=0.98)
    with pytest.warns(FitWarning, match=r"angles = .* is poorly identified: .* radians; the field is hardly"):
        sd.fit(
            kernel,
            simulate(Exponential(1.5), 1),
            POINTS,
            mean=None,
            fixed=["scales", "lengthscale"],
            starts=1,
        )


def test_two_nuggets_are_one():
    x = simulate(Exponential(1.5) + Nugget(0.3), 5)
    kernel = Exponential(1.5) + Nugget(0.1) + Nugget(0.1)
    with pytest.warns(FitWarning, match="nugget1, nugget2 are not identified separately"):
        sd.fit(kernel, x, POINTS, mean=None, fixed=["lengthscale"], starts=1)
    # tied, they are
    tied = sd.fit(
        kernel, x, POINTS, mean=None, fixed=["lengthscale"], ties=[("nugget1", "nugget2")], starts=1
    )
    single = sd.fit(Exponential(1.5) + Nugget(0.1), x, POINTS, mean=None, fixed=["lengthscale"], starts=1)
    assert not any("nugget" in text for text in tied.warnings)
    assert 2 * tied.parameters["nugget1"] == pytest.approx(single.parameters["nugget"], rel=1e-3)
    assert 2 * tied.standard_errors["nugget2"] == pytest.approx(single.standard_errors["nugget"], rel=1e-2)


def test_scales_that_the_sites_do_not_resolve():
    sites = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).double()
    domain = sd.Points(sites)
    x = torch.randn(3, 25, dtype=F64, generator=generator(4))
    with pytest.warns(FitWarning, match=r"below the distance between neighbouring sites 1:|lower bound"):
        sd.fit(Exponential(0.5), x, domain, mean=None, bounds={"lengthscale": (0.2, 0.6)}, starts=1)


def test_noise_of_the_likelihood_is_called_out(monkeypatch):
    x = simulate(Exponential(1.5), 4)
    result = sd.fit(Exponential(1.5), x, POINTS, mean=None, starts=1)
    search = result.search
    monkeypatch.setattr(search.likelihood, "standard_error", lambda theta: 2.5)
    model, data = search.likelihood.model, search.likelihood.data
    texts = list(complaints(model, data, search.optimum, search.covariance, search.likelihood))
    assert any("Monte-Carlo standard error of 2.5: differences below 7.5" in text for text in texts)


def test_infill_determines_the_ratio_and_not_the_factors():
    """One field on ever denser sites of a line: the relative error of σ²/ℓ falls, that of σ² stays
    [Ying 1991; Zhang 2004]."""
    errors = {}
    for n in (20, 160):
        line = sd.Points(torch.linspace(0, 1, n, dtype=F64))
        kernel = Exponential(1.0, 1.0)
        model = KernelParameters(kernel)
        covariance = model.matrix(model.start(), line.sites()).detach()
        # the expected information, tr(Γ⁻¹ ∂ᵢΓ Γ⁻¹ ∂ⱼΓ)/2
        steps = 1e-5 * torch.eye(2, dtype=F64)
        pairs = [[model.matrix(model.start() + s, line.sites()) for s in (-step, step)] for step in steps]
        slopes = torch.stack([(above - below) / 2e-5 for below, above in pairs])
        solved = torch.linalg.solve(covariance, slopes)
        information = 0.5 * torch.einsum("iab,jba->ij", solved, solved)
        derived = derived_quantities(model, model.start(), torch.linalg.inv(information))
        position = model.names.index("variance")
        errors[n] = (
            derived["variance/lengthscale"][1],
            math.sqrt(torch.linalg.inv(information)[position, position]),
        )
    # as √(2/n)
    assert errors[160][0] == pytest.approx(math.sqrt(2 / 160), rel=0.1)
    assert errors[20][0] / errors[160][0] == pytest.approx(math.sqrt(8.0), rel=0.15)
    assert errors[20][1] / errors[160][1] == pytest.approx(1.0, rel=0.1)
