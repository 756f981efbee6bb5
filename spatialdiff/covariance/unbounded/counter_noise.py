r"""White noise on all of ``Z^d``, the same on every machine.

The lattice is cut into blocks. Block ``(b_1, …, b_d)`` holds the stream of numpy's Philox4x64-10 [Salmon et
al. 2011] with key ``(seed, d + 4·member)`` and counter ``(0, b_1, b_2, b_3)``, whose bits are those of the
published algorithm: nothing depends on what was drawn before. Pairs of 53-bit uniforms ``u, v`` become ``√(-2
log u) (cos 2πv, sin 2πv)`` [Box & Muller 1958], rounded to a multiple of ``2^-18``.

The logarithm, sine and cosine of a machine's mathematical library may differ in the last bit from another's.
Here they are polynomials in ``+ - × ÷`` and ``√``, which IEEE 754 rounds in one way only; numpy evaluates
each as a pass of its own, so that no product and sum are fused.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# part of the definition of the field: sites per axis of a block, by dimension
BLOCK = {1: 4096, 2: 64, 3: 16}
# noise is a multiple of 2^-FRACTION
FRACTION = 18
_WORD = 1 << 64
_TERMS = 12
_LOG_2 = 0.6931471805599453

Float = NDArray[np.float64]


def _polynomial(x: Float, coefficients: list[float]) -> Float:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x
        value = value + coefficient
    return value


def logarithm(x: Float) -> Float:
    """``log x`` of normal positive numbers: ``x = 2^e f``, ``log f = 2 artanh((f-1)/(f+1))``."""
    fraction, exponent = np.frexp(x)
    low = fraction < math.sqrt(0.5)
    fraction = np.where(low, fraction + fraction, fraction)
    power = (exponent - low).astype(np.float64)
    s = (fraction - 1.0) / (fraction + 1.0)
    series = _polynomial(s * s, [2.0 / (2 * k + 1) for k in range(_TERMS)])
    scaled = power * _LOG_2
    result: Float = scaled + s * series
    return result


def cosine_sine(v: Float) -> tuple[Float, Float]:
    """``cos 2πv`` and ``sin 2πv`` for ``0 ≤ v < 1``, by quarter turns and Taylor series."""
    quarter = np.rint(4.0 * v)
    angle = (4.0 * v - quarter) * (math.pi / 2)
    square = angle * angle
    cosine = _polynomial(square, [(-1) ** k / math.factorial(2 * k) for k in range(_TERMS)])
    sine = angle * _polynomial(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(_TERMS)])
    turn = quarter.astype(np.int64) % 4
    return (
        np.choose(turn, [cosine, -sine, -cosine, sine]),
        np.choose(turn, [sine, cosine, -sine, -cosine]),
    )


def normals(bits: NDArray[np.uint64]) -> Float:
    """Standard normal numbers from as many 64-bit words, an even number of them along the last axis."""
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    half = bits.shape[-1] // 2
    radius = np.sqrt(-2.0 * logarithm(uniform[..., :half]))
    cosine, sine = cosine_sine(uniform[..., half:])
    return np.concatenate([radius * cosine, radius * sine], axis=-1)


def block_noise(seed: int, member: int, block: tuple[int, ...]) -> Float:
    """White noise of one block in units of ``2^-18``, whole numbers, shape ``(BLOCK[d],) * d``."""
    d = len(block)
    counter = [0, *(b % _WORD for b in block), *(0,) * (3 - d)]
    words = [np.array([seed, d + 4 * member], dtype=np.uint64), np.array(counter, dtype=np.uint64)]
    generator: Any = np.random.Philox(key=words[0], counter=words[1])
    values = normals(generator.random_raw(BLOCK[d] ** d))
    return np.rint(values * 2.0**FRACTION).reshape((BLOCK[d],) * d)


def lattice_noise(seed: int, member: int, start: tuple[int, ...], shape: tuple[int, ...]) -> Float:
    """White noise of the sites ``start ≤ i < start + shape``, in units of ``2^-18``."""
    size = BLOCK[len(shape)]
    result = np.empty(shape)
    ranges = [range(s // size, (s + n - 1) // size + 1) for s, n in zip(start, shape, strict=True)]
    for block in itertools.product(*ranges):
        source, target = [], []
        for b, s, n in zip(block, start, shape, strict=True):
            low, high = max(b * size, s), min((b + 1) * size, s + n)
            source.append(slice(low - b * size, high - b * size))
            target.append(slice(low - s, high - s))
        result[tuple(target)] = block_noise(seed, member, block)[tuple(source)]
    return result
