"""Square roots by contour quadrature against eigenvectors, at condition numbers up to 1e8."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from spectra import rotation, spectrum

from spatialdiff.covariance.numerics.contour import (
    ContourRoot,
    jacobi,
    multi_shift,
    quarter_period,
    rational_inverse_root,
)


def vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contour(matmul, lower, upper, tolerance, **options):
    return ContourRoot(
        matmul, 1, rational_inverse_root(lower, upper, 0.1 * tolerance), tolerance, floor=lower, **options
    )


@pytest.mark.parametrize("complement", [0.9, 1e-2, 1e-5])
def test_elliptic_functions(complement):
    """Against 40-digit arithmetic, near ``K`` too, where ``cn`` and ``dn`` are small."""
    with mpmath.workdps(40):
        m = 1 - mpmath.mpf(complement) ** 2
        period = quarter_period(complement)
        assert period == pytest.approx(float(mpmath.ellipk(m)), rel=1e-14)
        u = torch.linspace(0.02, 0.98, 13, dtype=torch.float64) * period
        for name, values in zip(("sn", "cn", "dn"), jacobi(u, complement), strict=True):
            expected = [float(mpmath.ellipfun(name, mpmath.mpf(x), m=m)) for x in u.tolist()]
            torch.testing.assert_close(
                values, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0, msg=name
            )


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_rational_function(condition, tolerance):
    """At its stated error between the nodes of its own check, with the number of nodes that theory gives."""
    made = rational_inverse_root(3 / condition, 3.0, tolerance)
    grid = torch.logspace(math.log10(3 / condition), math.log10(3.0), 4321, dtype=torch.float64)
    error = (grid.sqrt() * (made.weights / (grid[:, None] + made.shifts)).sum(-1) - 1).abs().max().item()
    assert error <= 1.1 * tolerance
    assert (made.weights > 0).all()
    assert (made.shifts > 0).all()
    predicted = math.log(4 / tolerance) * (math.log(condition) + 3) / (2 * math.pi**2)
    assert len(made.shifts) <= 1.2 * predicted + 2


def test_multi_shift_solves():
    values = spectrum(60, 1e3, "geometric")
    q = rotation(60)
    a = (q * values) @ q.T
    b, shifts = vectors(2, 3, 60), torch.tensor([1e-4, 1e-2, 5.0], dtype=torch.float64)
    calls = []

    def operator(x):
        calls.append(1)
        return x @ a

    y, iterations = multi_shift(
        operator,
        b,
        shifts,
        ndim=1,
        coefficients=torch.ones(3, dtype=torch.float64),
        target=lambda y: 1e-9 * b.norm(dim=-1),
        max_iterations=400,
    )
    assert len(calls) == iterations
    for t, solution in zip(shifts, y, strict=True):
        residual = solution @ a + t * solution - b
        assert (residual.norm(dim=-1) <= 1e-8 * b.norm(dim=-1)).all()


@pytest.mark.parametrize("kind", ["geometric", "nugget", "outlier"])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_roots_within_their_tolerance(kind, condition, tolerance):
    n = 100
    values = spectrum(n, condition, kind)
    q = rotation(n)
    made = contour(
        lambda x: (x @ q * values) @ q.T, values.min().item(), values.max().item(), tolerance,
        max_iterations=20_000,
    )  # fmt: skip
    z = vectors(2, n)
    for operation, power in ((made.root, 0.5), (made.inverse_root, -0.5)):
        exact = (z @ q * values.pow(power)) @ q.T
        try:
            error = (operation(z) - exact).norm(dim=-1) / exact.norm(dim=-1)
        except RuntimeError as stopped:
            # an error that is raised is right only where float64 cannot do better
            assert condition * 2.2e-16 > 1e-3 * tolerance, stopped  # noqa: PT017
            continue
        assert (error <= tolerance).all()


def test_root_of_a_singular_operator():
    """``A^{1/2} z`` needs no bound from below: below the interval it is ``√lower/5`` off at most."""
    values = torch.cat(
        [torch.zeros(20, dtype=torch.float64), torch.linspace(0.5, 2, 40, dtype=torch.float64)]
    )
    q = rotation(60)
    tolerance = 1e-6
    rational = rational_inverse_root((0.5 * tolerance) ** 2, 2.0, 0.1 * tolerance)
    made = ContourRoot(lambda x: (x @ q * values) @ q.T, 1, rational, tolerance)
    below = torch.logspace(-6, 0, 500, dtype=torch.float64) * rational.lower
    approximate = below * (rational.weights / (below[:, None] + rational.shifts)).sum(-1)
    assert (approximate - below.sqrt()).abs().max().item() <= 0.2 * math.sqrt(rational.lower)
    z = vectors(3, 60)
    exact = (z @ q * values.sqrt()) @ q.T
    assert ((made.root(z) - exact).norm(dim=-1) <= tolerance * exact.norm(dim=-1)).all()


def test_root_squared_is_the_operator():
    values = spectrum(80, 1e5, "nugget")
    q = rotation(80)
    made = contour(lambda x: (x @ q * values) @ q.T, values.min().item(), values.max().item(), 1e-8)
    z = vectors(80)
    twice = made.root(made.root(z))
    torch.testing.assert_close(twice, (z @ q * values) @ q.T, rtol=0, atol=4e-8 * z.norm().item())
    torch.testing.assert_close(made.inverse_root(made.root(z)), z, rtol=0, atol=1e-4)


def family(theta, base, other):
    return base * theta[0] + other * theta[1].square()


def operators(n, condition):
    q = rotation(n)
    base = (q * spectrum(n, condition, "geometric")) @ q.T
    other = torch.cov(vectors(n, 2 * n, seed=3)) / n
    return base, other


@pytest.mark.parametrize("condition", [1e2, 1e5])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_against_eigenvectors(condition, inverse):
    """The derivative that autograd finds through a dense eigendecomposition, in parameters and in ``z``."""
    n = 30
    base, other = operators(n, condition)
    weight = vectors(n, seed=9)
    gradients = []
    for way in ("contour", "dense"):
        theta = torch.tensor([1.3, 0.7], dtype=torch.float64, requires_grad=True)
        z = vectors(2, n).requires_grad_()
        matrix = family(theta, base, other)
        values = torch.linalg.eigvalsh(matrix.detach())
        if way == "contour":
            made = contour(
                lambda x, theta=theta: x @ family(theta, base, other),
                values[0].item(),
                values[-1].item(),
                1e-9,
            )
            x = made.inverse_root(z) if inverse else made.root(z)
        else:
            lam, v = torch.linalg.eigh(matrix)
            x = (z @ v * lam.pow(-0.5 if inverse else 0.5)) @ v.T
        loss = (x * weight).sum() + x.square().sum()
        gradients.append(torch.autograd.grad(loss, (theta, z)))
    for mine, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-7 * exact.abs().max().item())


def test_gradient_against_finite_differences():
    base, other = operators(25, 1e3)
    z, weight = vectors(25), vectors(25, seed=9)

    def value(theta):
        matrix = family(theta, base, other)
        values = torch.linalg.eigvalsh(matrix.detach())
        made = contour(lambda x: x @ family(theta, base, other), values[0].item(), values[-1].item(), 1e-11)
        return (made.root(z) * weight).sum()

    theta = torch.tensor([1.3, 0.7], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(theta), theta)
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-5
        with torch.no_grad():
            numeric = (value(theta + step) - value(theta - step)) / 2e-5
        assert gradient[i].item() == pytest.approx(numeric.item(), rel=1e-6)


def test_gradient_of_the_mean_square():
    """``d/dσ² E‖A^{1/2} z‖² = tr A / σ²``, over all unit vectors; a doubled gradient would show here."""
    base, _ = operators(25, 1e3)
    sigma2 = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    values = torch.linalg.eigvalsh(base) * 1.7
    made = contour(lambda x: sigma2 * (x @ base), values[0].item(), values[-1].item(), 1e-9)
    (gradient,) = torch.autograd.grad(made.root(torch.eye(25, dtype=torch.float64)).square().sum(), sigma2)
    assert gradient.item() == pytest.approx(base.trace().item(), rel=1e-7)


def test_batch_of_operators():
    q = rotation(40)
    values = torch.stack([spectrum(40, c, "geometric") for c in (10.0, 1e4)])
    made = contour(lambda x: (x @ q * values) @ q.T, values.min().item(), values.max().item(), 1e-8)
    z = vectors(3, 2, 40)
    exact = (z @ q * values.sqrt()) @ q.T
    assert ((made.root(z) - exact).norm(dim=-1) <= 1e-8 * exact.norm(dim=-1)).all()


def test_zero_in_zero_out():
    made = contour(lambda x: 2 * x, 1.0, 3.0, 1e-8)
    z = torch.zeros(2, 10, dtype=torch.float64)
    assert torch.equal(made.root(z), z)
    z[0] = 1.0
    torch.testing.assert_close(made.root(z), math.sqrt(2) * z, rtol=1e-8, atol=0)


def test_refuses():
    with pytest.raises(ValueError, match="0 < lower"):
        rational_inverse_root(0.0, 1.0, 1e-6)
    with pytest.raises(RuntimeError, match="100 quadrature nodes"):
        rational_inverse_root(1e-8, 1.0, 1e-17)
    values = spectrum(200, 1e8, "geometric")
    q = rotation(200)
    made = contour(lambda x: (x @ q * values) @ q.T, 1e-8, 1.0, 1e-6, max_iterations=100)
    with pytest.raises(RuntimeError, match="after 100 iterations"):
        made.root(vectors(200))
    values = spectrum(100, 1e8, "outlier")
    q = rotation(100)
    made = contour(lambda x: (x @ q * values) @ q.T, 1e-8, 1.0, 1e-11, max_iterations=2000)
    with pytest.raises(RuntimeError, match="rounding leaves an error bound"):
        made.inverse_root(vectors(100))
