"""Fits of every family with its shape parameters, within the bounds of its validity."""

from __future__ import annotations

import warnings

import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import DenseCovariance
from spatialdiff.fitting import FitResult, FitWarning
from spatialdiff.kernels import (
    Anisotropic,
    Askey,
    DampedCosine,
    Exponential,
    GeneralizedWendland,
    Gneiting,
    Matern,
    Nugget,
    Separable,
)
from spatialdiff.kernels.catalogue import CATALOGUE

GRID = sd.Grid((12, 13), spacing=0.5)
COMPACT = ("Spherical", "Circular", "Cubic", "Askey", "GeneralizedWendland")
KERNELS = {
    **{
        family.name: family.example(lengthscale=4.0) if family.name in COMPACT else family.example()
        for family in CATALOGUE
    },
    "Matern, trainable_nu": Matern(1.2, 1.3, trainable_nu=True),
    "GeneralizedWendland, trainable_kappa": GeneralizedWendland(0.7, 3.5, 4.0, trainable_kappa=True),
    "Anisotropic": Anisotropic(Matern(1.5, 1.3), 0.3, ratios=0.8),
    "Separable": Separable(Askey(1.5, 4.0), Exponential(3.0), axes=((0,), (1,))),
    "Gneiting": Gneiting(Matern(1.5, 1.3), 1.0, 0.9, 0.5),
}


@pytest.fixture(scope="module")
def fields():
    gamma = DenseCovariance(Matern(1.5, 1.5) + Nugget(0.1), GRID).double()
    return gamma.sample((20,), generator=torch.Generator().manual_seed(0)).detach()


def fit(kernel, fields, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return sd.fit(kernel, fields, GRID, starts=1, **options)


@pytest.mark.parametrize("method", ["whittle", "exact"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_family(name, method, fields):
    """The likelihood grows, the result goes through a file, and the kernel is a covariance there."""
    kernel = KERNELS[name] + Nugget(0.1)
    result = fit(kernel, fields, method=method)
    free = {p.rpartition("raw_")[2] for p, _ in KERNELS[name].named_parameters()}
    assert all(any(part in parameter for parameter in result.parameters) for part in free)
    if method == "exact":
        ahead = DenseCovariance(kernel, GRID).log_prob(fields - fields.mean()).sum()
        after = DenseCovariance(result.kernel, GRID).log_prob(fields - fields.mean()).sum()
        assert after > ahead
    again = FitResult.from_state(result.state_dict())
    x = GRID.coordinates().reshape(-1, 2)
    values = again.kernel.at_pairs(x[:, None], x[None])
    assert torch.equal(values, result.kernel.at_pairs(x[:, None], x[None]))
    assert float(torch.linalg.eigvalsh(values)[0]) > -1e-10


@pytest.mark.parametrize("method", ["whittle", "exact"])
def test_estimates_stop_where_the_kernel_is_valid(method, fields):
    """A damping below 1 would be likelier."""
    smooth = DenseCovariance(Matern(2.5, 1.5) + Nugget(0.1), GRID).double()
    smooth = smooth.sample((20,), generator=torch.Generator().manual_seed(0)).detach()
    with pytest.warns(FitWarning, match="where the kernel is not positive definite"):
        result = sd.fit(DampedCosine(2.0, 1.3) + Nugget(0.1), smooth, GRID, method=method, starts=1)
    assert result.parameters["damping"] == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(ValueError, match=r"on these sites for power ≥ 1\.5 only"):
        fit(Askey(2.0, 4.0), fields, bounds={"power": (0.5, 1.2)})


def test_effective_range_is_that_of_the_estimate(fields):
    """Also where it depends on a shape parameter; its error is from those of both parameters."""
    result = fit(Matern(0.8, 1.3, trainable_nu=True) + Nugget(0.1), fields, method="exact")
    matern = result.kernel.kernels[0]
    value, error = result.derived["effective_range"]
    assert value == pytest.approx(matern.effective_range.item(), rel=1e-9)
    relative = {
        name: result.standard_errors[name] / result.parameters[name] for name in ("lengthscale", "nu")
    }
    nu = result.parameters["nu"]
    ranges = [float(Matern(nu * (1 + step)).effective_range) for step in (-1e-4, 1e-4)]
    slope = abs(ranges[1] - ranges[0]) / (2e-4 * ranges[0])
    # between that of perfectly opposed and of perfectly joint errors
    assert abs(relative["lengthscale"] - slope * relative["nu"]) < error / value
    assert error / value < relative["lengthscale"] + slope * relative["nu"]
    assert error / value != pytest.approx(relative["lengthscale"], rel=1e-3)
    assert set(result.derived) == {"effective_range", "microergodic", "nugget/sill"}
