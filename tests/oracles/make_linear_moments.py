"""Writes linear_moments.json: Φ = exp(Ab) and Σ = ∫₀ᵇ exp(Ar) G exp(Aᵀr) dr to 60 digits by mpmath.

Σ by a way that the library does not take: the moment equation dΣ/db = AΣ + ΣAᵀ + G is one linear system in
the K² entries of Σ and the constant 1, ``exp(b [[A⊗I + I⊗A, vec G], [0, 0]])``, whose last column is vec Σ.
Unlike Van Loan's block exponential it holds no exp(-Ab), so nothing overflows for a stable A. Every value is
computed at 60 digits beside 40 guard digits, and again with twice as many: the script stops where the two
differ by more than 1e-60 relative. Matrices have entries that float64 holds exactly, and so is ``b`` the
float64 number. 22 digits are written. Run once; the file is what the tests read.
"""

from __future__ import annotations

import json
from pathlib import Path

import mpmath

DIGITS = 60
LENGTHS = tuple(10.0**k for k in range(-6, 4))


def stationary(Q, D, S):
    """A = -(Q + D) S⁻¹ for a diagonal S, G = 2D."""
    size = len(S)
    A = [[-(Q[i][j] + D[i][j]) / S[j] for j in range(size)] for i in range(size)]
    return A, [[2.0 * value for value in row] for row in D]


def diagonal(*values):
    return [[value if i == j else 0.0 for j in range(len(values))] for i, value in enumerate(values)]


def malda(size, mass=0.25):
    Q = [[0.0 if i == j else (-1.0 if i < j else 1.0) for j in range(size)] for i in range(size)]
    return stationary(Q, diagonal(0.0, *[2.0 * mass**0.5] * (size - 1)), (1.0, *[mass] * (size - 1)))


def processes():
    mass, coupling, friction = 0.25, 1.0, 8.0
    yield "VP", ([[-0.5]], [[1.0]])
    yield "BrownianMotion", ([[0.0]], [[1.0]])
    yield (
        "CLD",
        stationary([[0.0, -1.0], [1.0, 0.0]], diagonal(0.0, 2.0 * mass**0.5), (1.0, mass)),
    )
    yield "CLD in the theory", ([[0.0, 4.0], [-1.0, -8.0]], [[0.0, 0.0], [0.0, 4.0]])
    yield (
        "ALDA",
        stationary(
            [[0.0, -mass, 0.0], [mass, 0.0, -coupling], [0.0, coupling, 0.0]],
            diagonal(0.0, 0.0, friction * mass),
            (1.0, mass, mass),
        ),
    )
    yield "MALDA(3)", malda(3)
    yield "MALDA(5)", malda(5)
    # (Q, D, S) drawn once, rounded to 1/64; D of rank 2, S diagonal
    yield (
        "random K=4",
        stationary(
            [
                [0.0, 0.703125, -1.25, 0.328125],
                [-0.703125, 0.0, 0.90625, -0.53125],
                [1.25, -0.90625, 0.0, 1.609375],
                [-0.328125, 0.53125, -1.609375, 0.0],
            ],
            [
                [0.25, 0.125, 0.0, -0.25],
                [0.125, 1.0625, 0.5, -0.375],
                [0.0, 0.5, 0.25, -0.125],
                [-0.25, -0.375, -0.125, 0.3125],
            ],
            (1.0, 0.5, 2.0, 0.25),
        ),
    )
    # noise reaches the data through two integrations; no stationary law, G of rank 1
    yield (
        "twice integrated Brownian motion",
        (
            [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
            diagonal(0.0, 0.0, 1.0),
        ),
    )
    yield "underdamped oscillator", ([[0.0, 1.0], [-16.0, -0.25]], diagonal(0.0, 0.5))


def moments(A, G, b):
    """Φ and Σ at the present precision."""
    size = len(A)
    a, g, length = mpmath.matrix(A), mpmath.matrix(G), mpmath.mpf(b)
    system = mpmath.zeros(size * size + 1)
    for i in range(size):
        for j in range(size):
            row = i * size + j
            system[row, size * size] = g[i, j]
            for k in range(size):
                system[row, k * size + j] += a[i, k]
                system[row, i * size + k] += a[j, k]
    solved = mpmath.expm(length * system, method="taylor")
    sigma = [[solved[i * size + j, size * size] for j in range(size)] for i in range(size)]
    phi = mpmath.expm(length * a, method="taylor")
    return [[phi[i, j] for j in range(size)] for i in range(size)], sigma


def agree(first, second, scale):
    return all(
        abs(x - y) <= mpmath.mpf(10) ** -DIGITS * s
        for a, b, c in zip(first, second, scale, strict=True)
        for x, y, s in zip(a, b, c, strict=True)
    )


def checked(A, G, b):
    found = []
    for digits in (DIGITS + 40, 2 * DIGITS + 80):
        with mpmath.workdps(digits):
            found.append(moments(A, G, b))
    (phi, sigma), (again, twice) = found
    with mpmath.workdps(2 * DIGITS + 80):
        size = len(A)
        deviation = [mpmath.sqrt(twice[i][i]) for i in range(size)]
        entries = [[deviation[i] * deviation[j] for j in range(size)] for i in range(size)]
        largest = max(abs(x) for row in again for x in row)
        if not agree(phi, again, [[largest] * size] * size) or not agree(sigma, twice, entries):
            raise ArithmeticError(f"{DIGITS} digits are not reached at b={b:g} for {A}")
    return again, twice


def main() -> None:
    rows = []
    for name, (A, G) in processes():
        size = len(A)
        assert all(float(x) == x for row in (*A, *G) for x in row)
        values = []
        for b in LENGTHS:
            phi, sigma = checked(A, G, b)
            values.append(
                {
                    "b": b,
                    "phi": [[mpmath.nstr(x, 22) for x in row] for row in phi],
                    "sigma": [[mpmath.nstr(sigma[i][j], 22) for j in range(i + 1)] for i in range(size)],
                }
            )
        rows.append({"process": name, "A": A, "G": G, "values": values})
    path = Path(__file__).with_name("linear_moments.json")
    path.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
