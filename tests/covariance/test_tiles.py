"""Products by tiles against the matrix: every engine, family, dimension and data type."""

from __future__ import annotations

import multiprocessing
import resource

import pytest
import torch

from spatialdiff.covariance.points import tile_product, tiles_compiled, tiles_plain
from spatialdiff.covariance.points.closed_forms import FAMILIES, closed_form
from spatialdiff.covariance.points.tile_product import choose_backend, engine, kernel_product
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, at_pairs

ENGINES = {"plain": tiles_plain, "numba": tiles_compiled}
CPU = torch.device("cpu")


def uniform(*shape, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g, dtype=torch.float64) * scale


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def profiles(family, square):
    """``ρ`` and ``φ`` from their definitions."""
    s = square.sqrt()
    e = torch.exp(-s)
    rho = {
        "exponential": e,
        "matern32": (1 + s) * e,
        "matern52": (1 + s + square / 3) * e,
        "gaussian": torch.exp(-square),
    }[family]
    phi = {
        "exponential": torch.where(s > 0, -e / s, 0.0),
        "matern32": -e,
        "matern52": -(1 + s) * e / 3,
        "gaussian": -2 * torch.exp(-square),
    }[family]
    return rho, phi


# more sites than a tile has columns, and no multiple of its rows
N = 1100


@pytest.fixture(autouse=True)
def _narrow_tiles(monkeypatch):
    monkeypatch.setattr(tiles_plain, "COLUMNS", 500)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("d", "fields"), [(1, 2), (2, 1), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_engine(name, family, d, fields, dtype):
    coordinates, g, x = uniform(d, N, scale=8.0), normal(fields, N), normal(fields, N, seed=2)
    difference = (coordinates[:, :, None] - coordinates[:, None]).square()
    rho, phi = profiles(family, difference.sum(0))
    weight = g.T @ x
    eps = torch.finfo(dtype).eps
    product = ENGINES[name].multiply(family, coordinates.to(dtype), x.to(dtype))
    assert product.dtype == dtype
    # rounding of n products and of distances
    torch.testing.assert_close(
        product.double(), x @ rho, rtol=0, atol=20 * eps * (x.abs() @ rho).max().item()
    )
    value, slopes = ENGINES[name].moments(family, coordinates.to(dtype), g.to(dtype), x.to(dtype))
    assert value.dtype == slopes.dtype == torch.float64
    scale = (weight.abs() * rho).sum()
    assert value.item() == pytest.approx((weight * rho).sum().item(), abs=eps * scale.item())
    exact = (weight * phi * difference).sum((1, 2))
    scale = (weight * phi * difference).abs().sum((1, 2)).max().item()
    torch.testing.assert_close(slopes, exact, rtol=0, atol=2 * eps * scale)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-7), (torch.float64, 4e-16)])
def test_compiled_exponential(dtype, limit):
    """``exp(-s)`` on a line of sites, to rounding, and 0 rather than rubbish far away."""
    s = torch.cat([torch.linspace(0, 30, 5000, dtype=torch.float64), torch.tensor([85.0, 200.0, 1e4, 1e30])])
    x = torch.zeros(1, len(s), dtype=dtype)
    x[0, 0] = 1
    values = tiles_compiled.multiply("exponential", s[None].to(dtype), x)[0].double()
    error = (values - torch.exp(-s.to(dtype).double())).abs()
    assert error.max().item() < limit
    assert values[-1].item() < 1e-37


@pytest.mark.parametrize("name", ENGINES)
def test_threads_agree(name):
    coordinates, x = uniform(2, 700, scale=4.0), normal(3, 700)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for fields in (x, x[:1]):
                results.append(ENGINES[name].multiply("matern32", coordinates, fields)[:1])
                again = ENGINES[name].multiply("matern32", coordinates, fields)[:1]
                assert torch.equal(again, results[-1])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-12)


def _forked(queue, coordinates, x):
    queue.put(tiles_compiled.multiply("matern32", coordinates, x).sum().item())


def test_survives_a_fork():
    coordinates, x = uniform(2, 300), normal(1, 300)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = tiles_compiled.multiply("matern32", coordinates, x).sum().item()
    finally:
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=_forked, args=(queue, coordinates, x))
    worker.start()
    assert queue.get() == pytest.approx(here, rel=1e-12)
    worker.join()
    assert worker.exitcode == 0


# ---- which kernels are closed forms
def test_closed_forms():
    form = closed_form(Matern(2.5, [1.0, 2.0], 1.5) + Gaussian(0.5) + Nugget(0.1) + Nugget(0.2), 2)
    assert form.families == ("matern52", "gaussian")
    torch.testing.assert_close(form.nugget.item(), 0.3)
    torch.testing.assert_close(
        form.scales.detach(),
        torch.tensor([[5**0.5, 5**0.5 / 2], [2**0.5, 2**0.5]], dtype=torch.float64),
    )
    batched = closed_form(Exponential(batch_shape=(3,)) + Nugget(0.2), 2)
    assert batched.variances.shape == (1, 3)
    assert batched.scales.shape == (1, 3, 2)
    assert closed_form(Matern(1.5) * Matern(0.5), 2) is None
    assert closed_form(Nugget(1.0), 2) is None

    class Odd(Matern):
        def correlation(self, r):
            return torch.exp(-r.square())

    assert closed_form(Odd(1.5), 2) is None


def test_backends():
    kernel, other = Matern(1.5) + Nugget(0.1), Matern(1.5) * Matern(0.5)
    assert choose_backend("auto", kernel, 2, CPU)[0] == "numba"
    backend, why = choose_backend("auto", other, 2, CPU)
    assert backend == "plain"
    assert why.startswith("the compiled tiles have sums of Matern")
    with pytest.raises(ValueError, match='use backend="plain" for Product'):
        choose_backend("numba", other, 2, CPU)
    with pytest.raises(ValueError, match="backend must be one of"):
        choose_backend("cuda", kernel, 2, CPU)
    with pytest.raises(ValueError, match="works on the CPU"):
        choose_backend("numba", kernel, 2, torch.device("cuda"))


def test_missing_numba(monkeypatch):
    monkeypatch.setattr(tile_product.importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto", Matern(1.5), 2, CPU) == ("plain", "numba is not installed")
    with pytest.raises(ImportError, match="pip install numba"):
        choose_backend("numba", Matern(1.5), 2, CPU)


# ---- the product
@pytest.mark.parametrize("backend", ["plain", "numba"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_product_and_gradients(backend, batch):
    """Value, and derivative in fields and every parameter, against the matrix and autograd."""
    n, sites = 300, uniform(300, 2, scale=5.0)
    g, x = normal(2, *batch, n), normal(2, *batch, n, seed=2)

    def build():
        first = torch.tensor([0.8, 1.3, 2.0]).reshape(3, 1) if batch else 1.3
        return (
            Matern(1.5, first, 1.7, batch_shape=batch)
            + Exponential(torch.tensor([1.0, 3.0]), 0.4, batch_shape=batch)
            + Nugget(0.2)
        )

    results = []
    for way in ("tiles", "matrix"):
        kernel, field = build(), x.clone().requires_grad_()
        if way == "tiles":
            y = kernel_product(kernel, sites, field, backend)
        else:
            y = (at_pairs(kernel, sites[:, None], sites[None]) @ field.unsqueeze(-1)).squeeze(-1)
        parameters = list(kernel.parameters())
        results.append((y.detach(), *torch.autograd.grad((y * g).sum(), [field, *parameters])))
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-10 * exact.abs().max().item())


def test_product_of_any_kernel():
    """A kernel without a closed form, in float32 far from the origin, tile by tile."""
    n, sites = 600, uniform(600, 2, scale=5.0)
    x, g = normal(1, n), normal(1, n, seed=2)
    results = []
    for way in ("tiles", "matrix"):
        kernel = Matern(1.5, 2.0, 1.7) * Matern(0.5, 4.0)
        if way == "tiles":
            y = kernel_product(kernel, sites + 1e6, x.float(), "plain").double()
        else:
            y = x @ at_pairs(kernel, sites[:, None], sites[None])
        parameters = list(kernel.parameters())
        results.append((y.detach(), *torch.autograd.grad((y * g).sum(), parameters)))
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("backend", ["plain", "numba"])
@pytest.mark.parametrize("product", [False, True])
def test_equal_sites_have_nuggets_of_their_own(backend, product):
    sites = uniform(30, 2)
    sites[20:] = sites[:10]
    smooth = Matern(1.5) * Matern(0.5) if product else Matern(1.5)
    x = normal(2, 30)
    expected = x @ at_pairs(smooth, sites[:, None], sites[None]) + 0.5 * x
    y = kernel_product(smooth + Nugget(0.5), sites, x, "plain" if product else backend)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_gradient_needs_unchanged_parameters():
    kernel = Matern(1.5) * Matern(0.5)
    y = kernel_product(kernel, uniform(30, 2), normal(1, 30), "plain").sum()
    with torch.no_grad():
        next(kernel.parameters()).add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_memory_stays_small():
    """The product at 20,000 sites, whose matrix would take 1.6 GB."""
    coordinates, x = uniform(2, 20_000), normal(1, 20_000).float()
    tiles_compiled.multiply("matern32", coordinates[:, :64].float(), x[:, :64])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tiles_compiled.multiply("matern32", coordinates.float(), x)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50


def test_keops():
    """KeOps compiles for some seconds; one formula here, the others in benchmarks/kernel_product.py."""
    tiles = engine("keops")
    coordinates, x = uniform(2, 200, scale=4.0), normal(2, 200)
    rho, _ = profiles("matern32", (coordinates[:, :, None] - coordinates[:, None]).square().sum(0))
    torch.testing.assert_close(tiles.multiply("matern32", coordinates, x), x @ rho, rtol=0, atol=1e-10)
