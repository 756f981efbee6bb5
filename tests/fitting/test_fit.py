"""Estimates against the truth they were simulated from, and everything a user can get wrong."""

from __future__ import annotations

import io
import math
import warnings

import gpytorch
import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import Covariance, DenseCovariance, TorusCovariance
from spatialdiff.fitting import FitResult, FitWarning, MeanShare
from spatialdiff.kernels import Coregionalization, Exponential, Gaussian, Matern, Nugget

TRUTH = {"lengthscale": 3.0, "variance": 2.0, "nugget": 0.3}
OPEN, TORUS = sd.Grid((18, 20), spacing=0.5), sd.Grid((32, 24), spacing=0.5, periodic=True)


def truth(nu=1.5):
    return Matern(nu=nu, lengthscale=TRUTH["lengthscale"], variance=TRUTH["variance"]) + Nugget(
        TRUTH["nugget"]
    )


def simulate(grid, number, kernel=None, seed=0, channels=None):
    family = TorusCovariance if all(grid.periodic) else DenseCovariance
    generator = torch.Generator().manual_seed(seed)
    lead = (number,) if channels is None else (number, channels)
    return family(kernel or truth(), grid).double().sample(lead, generator=generator).detach()


@pytest.fixture(scope="module")
def open_fields():
    return simulate(OPEN, 60, seed=3) + 1.5


def standardised(result, expected):
    return [
        (result.parameters[name] - value) / result.standard_errors[name] for name, value in expected.items()
    ]


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (TORUS, {"method": "exact"}),
        (TORUS, {"method": "exact", "mean": "field"}),
        (OPEN, {"method": "exact"}),
        (OPEN, {"method": "whittle"}),
        (OPEN, {"method": "whittle", "taper": 0.5}),
        (sd.Grid((300,), spacing=0.25), {"method": "whittle", "mean": None}),
        (sd.Grid((16, 14), spacing=0.5, periodic=(True, False)), {"method": "exact"}),
        (sd.Grid((12, 10, 8), spacing=0.5, periodic=True), {}),
    ],
    ids=str,
)
def test_parameters_are_recovered_within_their_standard_errors(grid, options):
    x = simulate(grid, 60, seed=5)
    result = sd.fit(Matern(nu=1.5) + Nugget(0.1), x, grid, **options)
    assert result.converged
    assert result.warnings == []
    assert max(map(abs, standardised(result, TRUTH))) < 4.0
    # and the errors are worth something
    assert result.standard_errors["variance"] < 0.25 * result.parameters["variance"]
    assert abs(float(result.mean.mean())) < 0.5


@pytest.mark.parametrize(
    "options", [{"method": "exact"}, {"method": "whittle"}, {"method": "whittle", "taper": 0.6}]
)
def test_standard_errors_cover(options):
    """Squared standardised errors have mean 1."""
    grid = sd.Grid((14, 14), spacing=0.5, periodic=options["method"] == "exact")
    kernel = Matern(nu=1.5, lengthscale=1.2, variance=2.0) + Nugget(0.3)
    squares = []
    for seed in range(40):
        x = simulate(grid, 20, kernel, seed=100 + seed)
        result = sd.fit(kernel, x, grid, mean=None, starts=1, **options)
        squares.append(
            [z**2 for z in standardised(result, {"lengthscale": 1.2, "variance": 2.0, "nugget": 0.3})]
        )
    # mean of 40 χ²₁ per parameter; averaged over three that may be fully dependent
    assert abs(float(torch.tensor(squares).mean()) - 1.0) < 4.0 * math.sqrt(2.0 / 40)


def test_whittle_without_the_expected_periodogram_is_biased_and_with_it_is_not():
    grid = sd.Grid((16, 16))
    kernel = Matern(nu=1.5, lengthscale=3.0, variance=1.0) + Nugget(0.05)
    x = simulate(grid, 400, kernel, seed=8)
    expected = {"lengthscale": 3.0, "variance": 1.0, "nugget": 0.05}
    debiased = sd.fit(kernel, x, grid, method="whittle", mean=None, starts=1)
    assert max(map(abs, standardised(debiased, expected))) < 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        lattice = sd.fit(kernel, x, grid, method="whittle", density="lattice", mean=None, starts=1)
    assert max(map(abs, standardised(lattice, expected))) > 10.0


def test_auto_says_what_it_chose(open_fields):
    small = sd.fit(Matern(), open_fields, OPEN)
    assert (small.method, small.n_fields) == ("exact", 60)
    assert "360 sites" in small.reason
    wide = sd.Grid((41, 40))
    large = sd.fit(Matern(), simulate(wide, 2, Matern(nu=1.5, lengthscale=3.0)), wide)
    assert large.method == "whittle"
    assert "1640 sites" in large.reason
    periodic = sd.fit(Matern(), simulate(TORUS, 5, Matern(nu=1.5, lengthscale=1.0)), TORUS)
    assert periodic.method == "exact"
    assert "eigenvalues" in periodic.reason


def test_result_is_ready_to_use(open_fields):
    kernel = Matern(nu=1.5) + Nugget(0.1)
    before = [p.detach().clone() for p in kernel.parameters()]
    result = sd.fit(kernel, open_fields, OPEN)
    assert all(torch.equal(a, b) for a, b in zip(before, kernel.parameters(), strict=True))
    assert all(p.requires_grad for p in kernel.parameters())
    assert not any(p.requires_grad for p in result.kernel.parameters())
    assert all(p.dtype == torch.float64 for p in result.kernel.parameters())
    assert isinstance(result.covariance, Covariance)
    assert result.covariance.domain == OPEN
    torch.testing.assert_close(
        result.covariance.variance(),
        torch.full(
            OPEN.shape, result.parameters["variance"] + result.parameters["nugget"], dtype=torch.float64
        ),
    )
    n, k = open_fields.numel(), 4
    assert result.aic == pytest.approx(2 * k - 2 * result.log_likelihood)
    assert result.bic == pytest.approx(k * math.log(n) - 2 * result.log_likelihood)
    exact = DenseCovariance(result.kernel, OPEN).double().log_prob(open_fields - result.mean).sum()
    assert float(exact) == pytest.approx(result.log_likelihood, rel=1e-9)
    text = str(result)
    for word in (
        "lengthscale",
        "variance",
        "nugget",
        "std. error",
        "AIC",
        "converged",
        "domain mean",
        "Matern + Nugget",
    ):
        assert word in text
    value, error = result.derived["variance/lengthscale^3"]
    assert value == pytest.approx(result.parameters["variance"] / result.parameters["lengthscale"] ** 3)
    # infill identifies it better than either factor
    assert error / value < result.standard_errors["variance"] / result.parameters["variance"]


def test_float32_fields_and_requested_dtype(open_fields):
    result = sd.fit(Matern(), open_fields.float(), OPEN, dtype=torch.float32)
    assert all(p.dtype == torch.float32 for p in result.kernel.parameters())
    assert result.mean.dtype == torch.float32
    assert result.parameters == pytest.approx(sd.fit(Matern(), open_fields, OPEN).parameters, rel=1e-4)


def test_channels_share_a_kernel_and_have_their_own_means():
    x = simulate(TORUS, 20, channels=3) + torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)[:, None, None]
    result = sd.fit(truth(), x, TORUS)
    assert result.mean.shape == (3, 1, 1)
    torch.testing.assert_close(result.mean, x.mean(dim=(0, 2, 3), keepdim=True)[0])
    assert result.covariance.event_shape == (3, *TORUS.shape)
    assert max(map(abs, standardised(result, TRUTH))) < 4.0
    x[:, 1] *= 3.0
    with pytest.warns(FitWarning, match="channels of variances"):
        sd.fit(truth(), x, TORUS)


def test_a_single_channel_axis_changes_nothing(open_fields):
    plain, axis = (sd.fit(Matern(), x, OPEN) for x in (open_fields, open_fields[:, None]))
    assert plain.parameters == pytest.approx(axis.parameters)
    assert (plain.channels, axis.channels) == (None, None)
    assert (plain.mean.shape, axis.mean.shape) == ((), (1, 1, 1))


@pytest.mark.parametrize("mean", [None, "constant", "field", "tensor"])
def test_means(open_fields, mean):
    given = torch.full(OPEN.shape, 1.5, dtype=torch.float64) if mean == "tensor" else mean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        result = sd.fit(truth(), open_fields, OPEN, mean=given, starts=1)
    assert torch.broadcast_to(result.mean, OPEN.shape).shape == OPEN.shape
    error = float(result.mean.mean()) - (0.0 if mean is None else 1.5)
    assert abs(error) < 5.0 * math.sqrt(TRUTH["variance"] / 60)
    if mean == "field":
        torch.testing.assert_close(result.mean, open_fields.mean(0))


def test_names_of_sums_products_and_length_scales_per_axis():
    grid = sd.Grid((10, 10))
    x = simulate(grid, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        names = lambda k: list(sd.fit(k, x, grid, starts=1, max_iterations=3).parameters)  # noqa: E731
        assert names(Matern(nu=0.5, lengthscale=[1.0, 2.0])) == [
            "lengthscale[0]",
            "lengthscale[1]",
            "variance",
        ] or names(Matern(nu=0.5, lengthscale=[1.0, 2.0])) == ["variance", "lengthscale[0]", "lengthscale[1]"]
        assert sorted(names(Matern() + Gaussian() + Nugget())) == [
            "gaussian.lengthscale",
            "gaussian.variance",
            "matern.lengthscale",
            "matern.variance",
            "nugget",
        ]
        assert sorted(names(Exponential() + Exponential(5.0))) == [
            "exponential1.lengthscale",
            "exponential1.variance",
            "exponential2.lengthscale",
            "exponential2.variance",
        ]
        assert sorted(names(gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()) + Nugget(0.1))) == [
            "lengthscale",
            "nugget",
            "outputscale",
        ]


def test_length_scale_per_axis_is_recovered_axis_by_axis():
    grid = sd.Grid((40, 40), periodic=True)
    kernel = Exponential(lengthscale=[2.0, 5.0], variance=1.5)
    result = sd.fit(Exponential(lengthscale=[1.0, 1.0]), simulate(grid, 30, kernel), grid)
    expected = {"lengthscale[0]": 2.0, "lengthscale[1]": 5.0, "variance": 1.5}
    assert max(map(abs, standardised(result, expected))) < 4.0
    assert set(result.derived) == {
        f"{name}[{axis}]" for name in ("variance/lengthscale", "effective_range") for axis in (0, 1)
    }
    # exp(-3) = 0.05
    value, error = result.derived["effective_range[1]"]
    assert value == pytest.approx(-math.log(0.05) * result.parameters["lengthscale[1]"])
    assert error / value == pytest.approx(
        result.standard_errors["lengthscale[1]"] / result.parameters["lengthscale[1]"]
    )


def test_a_gpytorch_kernel_gives_what_ours_gives(open_fields):
    ours = sd.fit(Matern(nu=2.5) + Nugget(0.1), open_fields, OPEN)
    theirs = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5)) + Nugget(0.1)
    foreign = sd.fit(theirs, open_fields, OPEN)
    assert foreign.log_likelihood == pytest.approx(ours.log_likelihood, abs=1e-4)
    assert foreign.parameters["outputscale"] == pytest.approx(ours.parameters["variance"], rel=1e-3)
    assert foreign.standard_errors["lengthscale"] == pytest.approx(
        ours.standard_errors["lengthscale"], rel=1e-2
    )


def test_a_kernel_that_is_not_stationary_takes_the_dense_likelihood():
    grid = sd.Grid((30,), spacing=0.1)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.LinearKernel()) + Nugget(0.5)
    kernel.kernels[0].base_kernel.raw_variance.requires_grad_(False)
    slopes = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(200, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = slopes * grid.coordinates()[:, 0] * 2.0 + 0.7 * noise
    result = sd.fit(kernel, x, grid, mean=None)
    line = kernel.kernels[0].base_kernel.variance.item()
    assert (
        abs(result.parameters["outputscale"] * line - 4.0)
        < 4.0 * result.standard_errors["outputscale"] * line
    )
    assert abs(result.parameters["nugget"] - 0.49) < 4.0 * result.standard_errors["nugget"]
    with pytest.raises(ValueError, match="not stationary"):
        sd.fit(kernel, x, grid, method="whittle", mean=None)
    with pytest.raises(ValueError, match=r"must be stationary|not stationary"):
        sd.fit(kernel, x, sd.Grid((30,), periodic=True), mean=None)


def test_fixed_parameters_stay(open_fields):
    by_value = sd.fit(truth(), open_fields, OPEN, fixed={"nugget": 0.25})
    assert by_value.parameters["nugget"] == 0.25
    assert by_value.standard_errors["nugget"] == 0.0
    assert "held" in str(by_value)
    by_name = sd.fit(truth(), open_fields, OPEN, fixed=["nugget", "variance"])
    assert by_name.parameters["nugget"] == pytest.approx(0.3)
    assert by_name.parameters["variance"] == pytest.approx(2.0)
    kernel = truth()
    kernel.kernels[0].raw_lengthscale.requires_grad_(False)
    frozen = sd.fit(kernel, open_fields, OPEN)
    assert frozen.parameters["lengthscale"] == pytest.approx(3.0)
    assert frozen.log_likelihood < sd.fit(truth(), open_fields, OPEN).log_likelihood
    assert frozen.aic == pytest.approx(2 * 3 - 2 * frozen.log_likelihood)


def test_warns_at_a_bound(open_fields):
    with pytest.warns(FitWarning, match=r"nugget stopped at its upper bound 0\.1"):
        result = sd.fit(truth(), open_fields, OPEN, bounds={"nugget": (0.01, 0.1)})
    assert result.parameters["nugget"] == pytest.approx(0.1)
    assert math.isnan(result.standard_errors["nugget"])
    assert result.standard_errors["variance"] > 0.0
    assert any("upper bound" in text for text in result.warnings)
    assert "warning:" in str(result)


def test_warns_of_a_nugget_that_is_not_there():
    x = simulate(OPEN, 20, Matern(nu=0.5, lengthscale=2.0))
    with pytest.warns(FitWarning, match="nugget"):
        sd.fit(Matern(nu=0.5) + Nugget(0.1), x, OPEN)


def test_warns_when_only_a_product_is_identified(open_fields):
    with pytest.warns(FitWarning, match="not identified") as caught:
        sd.fit(Matern(nu=1.5) * Matern(nu=1.5, lengthscale=5.0) + Nugget(0.1), open_fields, OPEN, starts=1)
    assert any("matern1.variance" in str(w.message) and "matern2.variance" in str(w.message) for w in caught)


def test_warns_beyond_the_extent_and_below_the_spacing():
    grid = sd.Grid((12, 12))
    flat = simulate(grid, 30, Exponential(lengthscale=400.0, variance=1.0))
    with pytest.warns(FitWarning, match="beyond the domain's extent|poorly identified"):
        sd.fit(Exponential(), flat, grid, mean=None)
    with pytest.warns(FitWarning, match="below the grid spacing|lower bound|poorly identified"):
        sd.fit(Exponential(), torch.randn(30, 12, 12, dtype=torch.float64), grid, mean=None)


def test_warns_of_variance_in_the_wrong_place():
    """Smooth fields with one rough, strong scale: an exponential follows the small scales and invents
    variance in the domain mean."""
    grid = sd.Grid((24, 24))
    x = simulate(grid, 60, Matern(nu=2.5, lengthscale=3.0, variance=1.0) + Nugget(1e-4))
    with pytest.warns(FitWarning, match="into the mean over the domain") as caught:
        result = sd.fit(Exponential(), x, grid)
    assert len(caught) >= 1
    assert result.mean_share.model > 2.0 * result.mean_share.data
    assert result.mean_share.low > result.mean_share.data
    right = sd.fit(Matern(nu=2.5) + Nugget(0.01), x, grid)
    assert right.warnings == []
    assert right.mean_share.low < right.mean_share.data < right.mean_share.high


@pytest.mark.parametrize(
    ("data", "model", "low", "high", "suspicious"),
    [
        (0.2, 0.6, 0.5, 0.7, True),
        (0.6, 0.2, 0.1, 0.3, True),
        (0.73, 0.988, 0.985, 0.99, True),
        (0.2, 0.6, 0.1, 0.9, False),
        (0.20, 0.22, 0.21, 0.23, False),
        (math.nan, 0.2, math.nan, math.nan, False),
    ],
)
def test_what_counts_as_variance_in_the_wrong_place(data, model, low, high, suspicious):
    assert MeanShare(data, model, low, high).suspicious is suspicious


def test_single_field_has_no_share_of_its_own():
    result = sd.fit(truth(), simulate(TORUS, 1, seed=2), TORUS, method="whittle")
    assert math.isnan(result.mean_share.data)
    assert "not to be estimated" in str(result)


def test_smooth_kernel_without_nugget_says_what_to_do():
    with pytest.raises(RuntimeError, match="Nugget"):
        sd.fit(Gaussian(8.0), simulate(OPEN, 3), OPEN, bounds={"lengthscale": (60.0, 80.0)})


def test_a_kernel_smoother_than_the_rounding_of_the_data_says_what_to_do():
    x = simulate(TORUS, 20, Gaussian(1.5))
    with pytest.warns(FitWarning, match="add a Nugget"):
        alone = sd.fit(Gaussian(), x, TORUS)
    assert not alone.converged
    assert "NOT converged" in str(alone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        together = sd.fit(Gaussian() + Nugget(0.1), x, TORUS)
    assert together.converged
    assert (
        abs(together.parameters["lengthscale"] - 1.5) < 4.0 * together.standard_errors["lengthscale"] + 0.01
    )


def two_channels():
    return Coregionalization([(torch.eye(2), Matern(1.5))])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"fields": torch.zeros(0, 18, 20)}, ValueError, "empty"),
        ({"fields": torch.zeros(3, 0, 18, 20)}, ValueError, "empty"),
        ({"fields": torch.zeros(3, 18, 21)}, ValueError, r"\(3, 18, 21\).*\(18, 20\)"),
        ({"fields": torch.zeros(3, 2, 2, 18, 20)}, ValueError, "one field"),
        ({"fields": torch.ones(3, 18, 20)}, ValueError, "constant"),
        ({"fields": torch.zeros(3, 18, 20, dtype=torch.long)}, TypeError, "floating point"),
        ({"fields": [[0.0]]}, TypeError, "torch.Tensor"),
        ({"method": "magic"}, ValueError, "auto, exact, whittle, vecchia, iterative"),
        ({"kernel": None}, ValueError, "spectrum"),
        ({"kernel": "matern"}, TypeError, "gpytorch"),
        ({"mean": "quadratic"}, ValueError, "constant"),
        ({"mean": torch.zeros(3, 3)}, ValueError, "broadcast"),
        ({"fields": torch.arange(360.0).reshape(1, 18, 20), "mean": "field"}, ValueError, "at least two"),
        ({"fixed": ["range"]}, ValueError, "lengthscale, variance, nugget|variance, lengthscale, nugget"),
        ({"fixed": ["lengthscale", "variance", "nugget"]}, ValueError, "left to fit"),
        ({"fixed": {"nugget": -1.0}}, ValueError, "outside its bounds"),
        ({"bounds": {"nugget": (2.0, 1.0)}}, ValueError, "leave nothing"),
        ({"taper": 0.5}, ValueError, "method named"),
        ({"method": "exact", "taper": 0.5}, ValueError, "method='whittle'"),
        ({"method": "whittle", "taper": 2.0}, ValueError, "between 0 and 1"),
        ({"method": "whittle", "density": "magic"}, ValueError, "expected"),
        ({"method": "exact", "basis": "cosine"}, ValueError, "spectrum"),
        ({"method": "exact", "neighbours": 3}, TypeError, "neighbors"),
        ({"restricted": True, "mean": None}, ValueError, "coefficients"),
        ({"restricted": True, "method": "whittle"}, ValueError, "exact"),
        ({"restricted": True, "method": "spectrum"}, ValueError, "likelihoods of a kernel"),
        ({"fixed": ["range"], "method": "eof"}, ValueError, "fits none"),
        ({"kernel": two_channels()}, ValueError, "has 2 channels and the fields have 1"),
        (
            {"kernel": two_channels(), "fields": torch.randn(3, 2, 18, 20), "method": "vecchia"},
            ValueError,
            "does not take a Coregionalization",
        ),
        ({"starts": 0}, ValueError, "at least 1"),
        ({"domain": (18, 20)}, TypeError, "Grid"),
    ],
)
def test_bad_input_is_refused_with_its_reason(change, error, match):
    arguments = {"kernel": truth(), "fields": torch.randn(3, 18, 20), "domain": OPEN, **change}
    with pytest.raises(error, match=match):
        sd.fit(**arguments)


@pytest.mark.filterwarnings("ignore::spatialdiff.fitting.FitWarning")
def test_shrinkage_says_that_it_needs_every_value():
    x = torch.randn(8, 18, 20, dtype=torch.float64)
    x[0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="observed at the same sites"):
        sd.fit(None, x, OPEN, "shrinkage", missing="omit")


def test_missing_values_are_counted_and_located():
    x = torch.randn(5, 2, 18, 20)
    x[3, 1, 2, 7] = math.nan
    x[4, 0, 0, 0] = math.inf
    with pytest.raises(
        ValueError, match=r"2 missing or infinite values of 3600, in 2 of 5 fields.*\(3, 1, 2, 7\)"
    ):
        sd.fit(truth(), x, OPEN)


def test_too_large_for_the_exact_likelihood():
    grid = sd.Grid((200, 200))
    with pytest.raises(ValueError, match=r"40000 x 40000.*whittle"):
        sd.fit(truth(), torch.randn(2, 200, 200), grid, method="exact")


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": Matern(nu=1.5, lengthscale=[1.0, 2.0]) * Gaussian(9.0) + Nugget(0.1)},
        {"kernel": Exponential(), "fixed": {"variance": 2.0}, "mean": "field"},
        {"kernel": None, "method": "spectrum"},
    ],
)
def test_state_goes_through_a_file_without_executing_anything(open_fields, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        result = sd.fit(options.pop("kernel"), open_fields, OPEN, **options)
    again = FitResult.from_state(through_a_file(result.state_dict()))
    assert str(again) == str(result)
    torch.testing.assert_close(
        again.covariance.to_dense(), result.covariance.to_dense(), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(again.mean, result.mean)


def test_state_of_a_foreign_kernel_needs_a_template(open_fields):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()) + gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.MaternKernel(0.5)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        result = sd.fit(kernel, open_fields, OPEN, starts=1)
    state = through_a_file(result.state_dict())
    with pytest.raises(ValueError, match="pass a kernel"):
        FitResult.from_state(state)
    with pytest.raises(ValueError, match="another structure"):
        FitResult.from_state(state, gpytorch.kernels.RBFKernel())
    again = FitResult.from_state(state, kernel)
    torch.testing.assert_close(again.covariance.to_dense(), result.covariance.to_dense())


def test_foreign_states_are_refused(open_fields):
    state = sd.fit(Matern(), open_fields, OPEN, starts=1).state_dict()
    with pytest.raises(ValueError, match="state_version"):
        FitResult.from_state({**state, "state_version": 99})
    del state["mean"]
    with pytest.raises(ValueError, match="lacks mean"):
        FitResult.from_state(state)
