"""Windows of one unlimited field: the same bits from every window, tile and process; the covariance asked
for.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from spatialdiff.covariance.unbounded.counter_noise import (
    BLOCK,
    block_noise,
    cosine_sine,
    lattice_noise,
    logarithm,
)
from spatialdiff.covariance.unbounded.field import UnboundedField
from spatialdiff.covariance.unbounded.moving_average import MovingAverage, of_kernel
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget

KERNELS = [
    (Matern(1.5, 3.0, 2.0), (1.0,)),
    (Exponential(2.0), (0.5, 1.0)),
    (Matern(2.5, (3.0, 1.5)) + Nugget(0.3), (1.0, 1.0)),
    (Gaussian(1.5), (1.0, 1.0, 1.0)),
]

GOLDEN_NOISE = [164544.0, -312983.0, 334054.0, -154883.0]
GOLDEN_FIELD = ["0x1.3de709b498605p+1", "-0x1.dae8f3bdb7789p-1", "0x1.882b1fcdc8400p+0"]


def small(seed=3, **options):
    return UnboundedField(
        MovingAverage(torch.tensor([[1.0, 2, 0.5], [0.3, -1, 2]])), seed=seed, tile=17, **options
    )


# ---- the generator
def test_philox_is_the_published_one():
    """Known answers of Philox4x64-10 from Random123's ``kat_vectors``: counter and key of zeros."""
    words = np.random.Philox(key=np.zeros(2, np.uint64), counter=np.zeros(4, np.uint64) + 0).random_raw(4)
    # numpy increments the counter before the first output: the answers for counter (1, 0, 0, 0)
    counter = np.array([2**64 - 1] * 4, dtype=np.uint64)
    wrapped = np.random.Philox(key=np.zeros(2, np.uint64), counter=counter).random_raw(4)
    assert [hex(w) for w in wrapped] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]
    assert not np.array_equal(words, wrapped)


def test_elementary_functions():
    x = np.concatenate([np.random.default_rng(0).random(200_000), 2.0 ** -np.arange(0, 54.0)])
    assert np.abs(logarithm(x) / np.log(np.where(x == 1, 2, x)) - 1)[x != 1].max() < 1e-15
    cosine, sine = cosine_sine(x[x < 1])
    assert np.abs(cosine - np.cos(2 * np.pi * x[x < 1])).max() < 1e-15
    assert np.abs(sine - np.sin(2 * np.pi * x[x < 1])).max() < 1e-15


def test_moments_of_the_noise():
    """Up to the sixth, and the distribution function, within 5 standard errors."""
    from scipy.stats import kstest

    w = lattice_noise(11, 0, (-700, 10**12), (1000, 1000)) / 2.0**18
    n, double = w.size, [1, 1, 3, 15, 105, 945, 10395]
    for power in range(1, 7):
        expected = double[power // 2] if power % 2 == 0 else 0
        # double[k] is E w^{2k}
        spread = math.sqrt((double[power] - expected**2) / n)
        assert abs((w**power).mean() - expected) < 5 * spread, power
    assert kstest(w.ravel()[::10], "norm").pvalue > 1e-4
    for lag in ((1, 0), (0, 1), (1, 1), (64, 0), (0, 64)):
        product = (w[lag[0] :, lag[1] :] * w[: 1000 - lag[0], : 1000 - lag[1]]).mean()
        assert abs(product) < 5 / math.sqrt(n - 1000 * sum(lag))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_noise_of_a_window_is_that_of_its_blocks(d):
    size = BLOCK[d]
    start = tuple(-size - 3 + j for j in range(d))
    window = lattice_noise(5, 1, start, (size + 9,) * d)
    site = tuple(range(-2, -2 + d))
    block = block_noise(5, 1, tuple(s // size for s in site))
    assert (
        window[tuple(s - b for s, b in zip(site, start, strict=True))] == block[tuple(s % size for s in site)]
    )
    assert np.array_equal(window, np.rint(window))
    assert not np.array_equal(window, lattice_noise(5, 2, start, (size + 9,) * d))
    assert not np.array_equal(window, lattice_noise(6, 1, start, (size + 9,) * d))


def test_golden_values():
    """Bits of the first sites: what every machine must give."""
    assert block_noise(0, 0, (0, 0))[0, :4].tolist() == GOLDEN_NOISE
    assert [v.hex() for v in small().window((-2, 10**12), (1, 3))[0].tolist()] == GOLDEN_FIELD


# ---- windows
def test_a_site_does_not_depend_on_window_order_or_tile():
    field = small()
    whole = field.window((-40, -25), (90, 70))
    rng = np.random.default_rng(1)
    for tile in (17, 5, 64, 200):
        other = UnboundedField(field.average, seed=3, tile=tile, cache_bytes=20_000)
        for _ in range(12):
            low = rng.integers(0, (60, 50))
            n = rng.integers(1, (30, 20))
            piece = other.window([int(v) for v in low - (40, 25)], [int(v) for v in n])
            expected = whole[low[0] : low[0] + n[0], low[1] : low[1] + n[1]]
            assert torch.equal(piece, expected)


def test_field_is_the_convolution():
    """``x_i = Σ_o a_o w_{i-o}``, in plain loops."""
    field = small()
    a, (rows, columns) = field.average.filter, (2, 3)
    noise = torch.from_numpy(lattice_noise(3, 0, (-10, -10), (30, 30))) / 2.0**18
    x = field.window((-4, -4), (12, 12))
    expected = torch.zeros(12, 12, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            top, left = 6 - (i - rows // 2), 6 - (j - columns // 2)
            expected += a[i, j] * noise[top : top + 12, left : left + 12]
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("start", [(10**12, -(10**12)), (2**61, -(2**61) - 5)])
def test_huge_and_negative_indices(start):
    field = small()
    x = field.window(start, (40, 40))
    assert torch.equal(field.window([s + 13 for s in start], (9, 21)), x[13:22, 13:34])
    assert 0.3 < x.var().item() / field.average.variance < 2
    assert not torch.equal(x, field.window((0, 0), (40, 40)))


def test_same_in_another_process():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from spatialdiff.covariance.unbounded.field import UnboundedField\n"
        "from spatialdiff.kernels import Matern\n"
        "f = UnboundedField(Matern(1.5, 2.0), (1.0, 1.0), 7, tile=90, tolerance=1e-4)\n"
        "f.window((500, -90), (3, 3))\n"
        "print(f.digest, [v.hex() for v in f.window((-5, 10**12), (4, 4)).flatten().tolist()])"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout
    field = UnboundedField(Matern(1.5, 2.0), (1.0, 1.0), 7, tolerance=1e-4)
    values = [v.hex() for v in field.window((-5, 10**12), (4, 4)).flatten().tolist()]
    assert found.strip() == f"{field.digest} {values}"


# ---- the covariance
@pytest.mark.parametrize(("kernel", "spacing"), KERNELS, ids=["1", "2", "2nugget", "3"])
def test_filter_of_a_kernel(kernel, spacing):
    """``a ⋆ a`` of the filter that is drawn, summed in the open, against the kernel at every lag in reach."""
    kernel = kernel.requires_grad_(False)
    tolerance = 1e-5
    field = UnboundedField(kernel, spacing, tolerance=tolerance)
    a, d = field.average.filter, len(spacing)
    variance = float(kernel.variance)
    lags = torch.cartesian_prod(*(torch.arange(-30, 31) if d < 3 else torch.arange(-14, 15),) * d).reshape(
        -1, d
    )
    wanted = kernel.at_lags(lags * torch.tensor(spacing, dtype=torch.float64))
    error = (field.covariance(lags) - wanted).abs().max().item()
    assert error <= field.covariance_error <= tolerance * variance
    assert field.covariance(torch.zeros(d)).item() == pytest.approx(variance, rel=1e-8)
    shift = (2,) + (0,) * (d - 1)
    direct = (a[2:] * a[:-2]).sum().item()
    assert field.covariance(torch.tensor(shift)).item() == pytest.approx(direct, abs=1e-12)
    # no shorter filter does
    shorter = a.shape[0] // 2 - 1
    with pytest.raises(ValueError, match="no filter of radius"):
        of_kernel(kernel, spacing, tolerance=tolerance, max_radius=shorter)
    assert not field.report.exact
    assert field.report.error_bound == field.covariance_error


@pytest.mark.parametrize("which", ["kernel", "average"])
def test_sample_covariance(which):
    """All pairs of a window, over windows that share no noise: variance ``(Γ_ii Γ_jj + Γ_ij²)/N``."""
    if which == "kernel":
        field = UnboundedField(Matern(1.5, 1.2).requires_grad_(False), (1.0, 1.0), 5, tolerance=1e-3)
    else:
        field = UnboundedField(MovingAverage.ball(1.5, 2, 3.0), seed=5)
    stride, count = 20, 3000
    assert max(field.average.filter.shape) + 4 <= stride
    plane = field.window((-602, 7), (60 * stride, 50 * stride))
    x = plane.reshape(60, stride, 50, stride)[:, :4, :, :3].transpose(1, 2).reshape(count, 12)
    site = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    matrix = field.covariance(site[:, None] - site[None])
    d = matrix.diagonal()
    deviation = ((d[:, None] * d + matrix.square()) / count).sqrt()
    assert ((x.T @ x / count - matrix) / deviation).abs().max().item() < 5
    assert (x.mean(0) / (d / count).sqrt()).abs().max().item() < 5


def test_spectrum_of_a_long_line():
    """Band averages of the periodogram against the DFT of ``a ⋆ a``: each is a mean of independent
    exponentials.
    """
    field = UnboundedField(Exponential(5.0).requires_grad_(False), 1.0, 9)
    n = 2**17
    x = field.window(-(10**15), n)
    power = torch.fft.rfft(x).abs().square()[1:-1] / n
    omega = 2 * math.pi * torch.arange(1, n // 2, dtype=torch.float64) / n
    rho = math.exp(-1 / 5)
    density = (1 - rho**2) / (1 - 2 * rho * omega.cos() + rho**2)
    ratio = (power / density)[: 65535 // 15 * 15].reshape(15, -1)
    assert (ratio.mean(-1) - 1).abs().max().item() < 5 / math.sqrt(ratio.shape[1])


def test_independence_across_seeds_and_members():
    fields = [small(seed=1), small(seed=2), small(seed=1, member=1)]
    x = torch.stack([f.window((0, 0), (100, 100)).flatten() for f in fields])
    spread = (
        fields[0]
        .covariance(torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-3, 4)))
        .square()
        .sum()
        .sqrt()
    )
    products = (x[[0, 0, 1]] * x[[1, 2, 2]]).mean(-1)
    assert products.abs().max().item() < 5 * spread.item() / 100
    assert len({f.digest for f in fields}) == 3
    assert torch.equal(fields[0].windows(2, (0, 0), (3, 3))[1], fields[2].window((0, 0), (3, 3)))


def test_ball_and_box():
    tent = MovingAverage.box(4, variance=2.0)
    lags = torch.arange(-6, 7)[:, None]
    torch.testing.assert_close(tent.at_lags(lags), 2 * (1 - lags[:, 0].abs() / 4).clamp_min(0).double())
    ball = MovingAverage.ball(6.0, 3)
    r = torch.arange(13, dtype=torch.float64) / 12
    spherical = 1 - 1.5 * r + 0.5 * r**3
    found = ball.at_lags(torch.stack([torch.arange(13), *(torch.zeros(13),) * 2], -1))
    assert (found - spherical).abs().max().item() < 0.03
    # one site in common at the range itself
    assert found[-1].item() == pytest.approx(1 / int((ball.filter != 0).sum()))
    field = UnboundedField(tent, seed=1)
    assert field.report.exact
    assert field.report.error_bound < 1e-13
    assert str(field.report).startswith("method            unbounded (exact)")


def test_types():
    field = small()
    assert field.window((0, 0), (2, 2)).dtype == torch.float64
    assert torch.equal(
        field.window((0, 0), (2, 2), dtype=torch.float32), field.window((0, 0), (2, 2)).float()
    )
    x = field.window((0, 0), (2, 2))
    x += 1
    assert torch.equal(field.window((0, 0), (2, 2)), x - 1)


def test_refuses():
    with pytest.raises(ValueError, match="seed must be a whole number"):
        UnboundedField(Matern(), seed=-1)
    with pytest.raises(ValueError, match="member must be"):
        UnboundedField(Matern(), member=1 << 61)
    with pytest.raises(ValueError, match="spacing needs"):
        UnboundedField(Matern(), (1.0,) * 4)
    with pytest.raises(ValueError, match="has no filter of radius"):
        UnboundedField(Matern(1.5, 30.0), 1.0, max_radius=20)
    with pytest.raises(ValueError, match="holds a batch"):
        UnboundedField(Matern(1.5, 3.0, batch_shape=(2,)))
    with pytest.raises(ValueError, match="below what a filter"):
        UnboundedField(Matern(1.5, 3.0), tolerance=1e-10)
    with pytest.raises(ValueError, match="the field has 2 axes"):
        small().window(0, 5)
    with pytest.raises(ValueError, match=r"below 2\^62"):
        small().window((0, 1 << 62), (1, 1))
    with pytest.raises(ValueError, match="whole numbers from 1"):
        small().window((0, 0), (1, 0))
    with pytest.raises(ValueError, match="tile must be"):
        UnboundedField(MovingAverage.box(3), tile=0)
    with pytest.raises(ValueError, match="not 0 everywhere"):
        MovingAverage(torch.zeros(3))
    with pytest.raises(ValueError, match="1, 2 or 3 axes"):
        MovingAverage(torch.ones(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"MovingAverage\.ball"):
        MovingAverage.ball(-1.0, 2)
