"""Every kernel through a file and back, to the bit and without a template; and fits of every family."""

from __future__ import annotations

import inspect
import io

import gpytorch
import pytest
import torch

from spatialdiff import kernels
from spatialdiff.fitting.kernel_state import kernel_from_state, kernel_state
from spatialdiff.kernels import (
    Anisotropic,
    Askey,
    Chordal,
    Coregionalization,
    Exponential,
    Gaussian,
    GeneralizedWendland,
    Gneiting,
    GridField,
    LegendreMatern,
    LegendreSeries,
    Matern,
    Nonstationary,
    Nugget,
    Periodic,
    PoweredExponential,
    Separable,
    SphericalAskey,
    SphericalCompact,
    SphericalExponential,
    SphericalMultiquadric,
    SphericalPoweredExponential,
    SphericalSinePower,
    at_pairs,
)
from spatialdiff.kernels.catalogue import CATALOGUE

F64 = torch.float64
BATCH = torch.tensor([0.7, 1.1, 2.3], dtype=F64)
FIELD = GridField(1 + torch.rand(5, 6, dtype=F64, generator=torch.Generator().manual_seed(0)), 1.7, -2.0)
EVERY = [
    *(family.example(variance=1.3) for family in CATALOGUE),
    *(family.example(lengthscale=BATCH[:, None], variance=BATCH, batch_shape=(3,)) for family in CATALOGUE),
    Nugget(0.3),
    Nugget(BATCH, batch_shape=(3,)),
    Matern(2.2, [0.3, 2.0], 0.7),
    Matern(BATCH, [0.3, 2.0], 0.7, trainable_nu=True, batch_shape=(3,)),
    GeneralizedWendland(0.7, 3.1, 2.0, trainable_kappa=True),
    Periodic([1.0, 3.0], [0.7, 0.9]),
    PoweredExponential(2.0, 0.9),
    Anisotropic(Matern(0.8, 1.3), 0.4, ratios=0.6),
    Anisotropic(Gaussian(1.0) + Nugget(0.1), lengthscales=[1.0, 2.0]),
    Anisotropic(Matern(), BATCH[:, None], ratios=BATCH[:, None], batch_shape=(3,)),
    Separable(Matern(0.8, 1.3), Exponential(2.0), axes=((1,), (0,))),
    Gneiting(Matern(0.8, 1.3), 2.0, 0.7, 0.6),
    Gneiting(Gaussian(1.3), BATCH, BATCH / 3, 0.0, 0.2, time_axis=0, batch_shape=(3,)),
    Nonstationary(Matern(0.8), [0.7, 1.4], angles=0.3, standard_deviation=2.0),
    Nonstationary(Matern(1.5), FIELD, standard_deviation=GridField(FIELD.values, 1.7, -2.0, trainable=True)),
    Matern(1.5) * Gaussian(2.0) + Anisotropic(Askey(3.0, 4.0), 0.2, ratios=0.6) + Nugget(0.2),
]
ON_THE_SPHERE = [
    SphericalExponential(0.7, 2.0),
    SphericalPoweredExponential(BATCH / 3, 0.7, batch_shape=(3,)),
    SphericalCompact(0.9),
    SphericalAskey(2.5, 1.2),
    SphericalSinePower(1.3),
    SphericalMultiquadric(0.7, 1.3, 3.0),
    Chordal(Gaussian(2.0) * Exponential(1.5) + Nugget(0.1), radius=3.0),
    LegendreMatern(1.3, 0.3, lmax=20),
    LegendreSeries([1.0, 0.5, 0.2]),
]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def rebuilt(kernel):
    # values that the natural parameters do not give back to the bit
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in kernel.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-9 * torch.rand(parameter.shape, generator=generator).to(parameter))
    return kernel_from_state(through_a_file(kernel_state(kernel)))


def check_same(again, kernel):
    assert type(again) is type(kernel)
    assert repr(again) == repr(kernel)
    assert again.batch_shape == kernel.batch_shape
    assert not any(parameter.requires_grad for parameter in again.parameters())
    saved = kernel.state_dict()
    assert list(again.state_dict()) == list(saved)
    for name, value in again.state_dict().items():
        assert value.dtype == saved[name].dtype
        assert torch.equal(value, saved[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kernel", EVERY, ids=repr)
def test_round_trip(kernel, dtype):
    kernel = kernel_from_state(kernel_state(kernel)).to(dtype).requires_grad_()
    again = rebuilt(kernel)
    check_same(again, kernel)
    x = torch.rand(7, 2, dtype=dtype, generator=torch.Generator().manual_seed(2))
    assert torch.equal(at_pairs(again, x[:, None], x[None]), at_pairs(kernel, x[:, None], x[None]))


@pytest.mark.parametrize("kernel", ON_THE_SPHERE, ids=repr)
def test_round_trip_on_the_sphere(kernel):
    again = rebuilt(kernel)
    check_same(again, kernel)
    theta = torch.linspace(0, 3, 9, dtype=F64)
    assert torch.equal(again.at_angles(theta), kernel.at_angles(theta))


def test_every_kernel_is_covered():
    parts = {type(module).__name__ for kernel in EVERY + ON_THE_SPHERE for module in kernel.modules()}
    classes = {
        name
        for name in kernels.__all__
        if isinstance(getattr(kernels, name), type) and not inspect.isabstract(getattr(kernels, name))
    }
    # the first is a base, the second no kernel: see below
    assert classes - parts == {"SpatialKernel", Coregionalization.__name__}


def coregionalized(rank):
    root = torch.rand(3, rank, dtype=F64, generator=torch.Generator().manual_seed(rank))
    return Coregionalization(
        [(root @ root.T, Matern(0.8, 1.3)), (torch.eye(3), Exponential(2.0) + Nugget(0.1))]
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_coregionalization_round_trip(rank):
    kernel = coregionalized(rank)
    again = rebuilt(kernel)
    check_same(again, kernel)
    x = torch.rand(5, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.cross_pairs(x[:, None], x[None]), kernel.cross_pairs(x[:, None], x[None]))


def test_roots_keep_their_shape_where_a_matrix_is_nearly_singular():
    kernel = coregionalized(3)
    with torch.no_grad():
        kernel.roots[0].copy_(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-7, 0.0], [0.0, 0.0, 1e-7]]))
    check_same(kernel_from_state(through_a_file(kernel_state(kernel))), kernel)


def test_what_is_not_data_needs_a_template():
    class Mine(Matern):
        pass

    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Softplus())
    for kernel in (
        Nonstationary(Matern(), network),
        Nonstationary(Matern(), lambda x: 1 + x[..., :1].square()),
        Mine() + Nugget(),
        Anisotropic(gpytorch.kernels.RBFKernel(), lengthscales=[1.0, 2.0]),
    ):
        state = through_a_file(kernel_state(kernel))
        with pytest.raises(ValueError, match="pass a kernel"):
            kernel_from_state(state)
        again = kernel_from_state(state, kernel)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), kernel.parameters(), strict=True))


def test_a_file_names_only_what_there_is():
    state = kernel_state(Matern(0.8))
    tree, tensors = state["tree"], state["tensors"]
    with pytest.raises(ValueError, match=r"unknown kernel 'os\.system'"):
        kernel_from_state({"tree": {**tree, "kind": "os.system"}, "tensors": tensors})
    with pytest.raises(ValueError, match="does not take"):
        kernel_from_state({"tree": {**tree, "arguments": {"code": 1}}, "tensors": tensors})
    with pytest.raises(ValueError, match="do not fit"):
        kernel_from_state({"tree": tree, "tensors": {}})
    with pytest.raises(ValueError, match="do not fit"):
        kernel_from_state({"tree": tree, "tensors": {**tensors, "raw_variance": torch.zeros(2)}})
    with pytest.raises(ValueError, match="is not a kernel"):
        kernel_from_state(
            {
                "tree": kernel_state(Nonstationary(Matern(), FIELD))["tree"]["arguments"]["lengthscale"],
                "tensors": {},
            }
        )
