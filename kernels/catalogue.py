r"""The isotropic families, one entry each: what a gallery draws and what a test goes through.

Formulas are in the scaled distance ``r = ‖h/ℓ‖``; ``max_dimension`` of an example says where it is positive
definite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spatialdiff.kernels.base import StationaryKernel
from spatialdiff.kernels.compact import Askey, Circular, Cubic, Spherical
from spatialdiff.kernels.families import Exponential, Gaussian, Matern
from spatialdiff.kernels.oscillating import DampedCosine, Periodic, Wave
from spatialdiff.kernels.tails import Cauchy, GeneralizedCauchy, PoweredExponential, RationalQuadratic
from spatialdiff.kernels.wendland import GeneralizedWendland


@dataclass(frozen=True)
class Family:
    r"""One family of covariance functions.

    Attributes:
        name: the class.
        formula: the correlation in LaTeX.
        validity: the dimensions in which it is positive definite, in LaTeX.
        spectrum: the dimensions, of 1 to 3, in which it has a spectral density.
        example: makes an example, called with keyword arguments such as ``lengthscale``.
    """

    name: str
    formula: str
    validity: str
    spectrum: tuple[int, ...]
    example: Callable[..., StationaryKernel]


def _make(kind: Callable[..., StationaryKernel], **shape: float) -> Callable[..., StationaryKernel]:
    return lambda **options: kind(**{**shape, **options})


ALL = r"\text{all } d"
CATALOGUE: tuple[Family, ...] = (
    Family("Exponential", r"e^{-r}", ALL, (1, 2, 3), Exponential),
    Family(
        "Matern",
        r"\tfrac{2^{1-\nu}}{\Gamma(\nu)} (\sqrt{2\nu}\, r)^\nu K_\nu(\sqrt{2\nu}\, r)",
        ALL,
        (1, 2, 3),
        _make(Matern, nu=1.0),
    ),
    Family("Gaussian", r"e^{-r^2/2}", ALL, (1, 2, 3), Gaussian),
    Family("PoweredExponential", r"e^{-r^\alpha}", ALL, (1, 2, 3), _make(PoweredExponential, alpha=1.5)),
    Family(
        "RationalQuadratic",
        r"(1 + r^2/(2\alpha))^{-\alpha}",
        ALL,
        (1, 2, 3),
        _make(RationalQuadratic, alpha=2.0),
    ),
    Family("Cauchy", r"(1 + r^2)^{-\beta/2}", ALL, (1, 2, 3), _make(Cauchy, beta=4.0)),
    Family(
        "GeneralizedCauchy",
        r"(1 + r^\alpha)^{-\beta/\alpha}",
        ALL,
        (1, 2, 3),
        _make(GeneralizedCauchy, alpha=1.0, beta=3.5),
    ),
    Family("Spherical", r"(1 - \tfrac32 r + \tfrac12 r^3)\, 1_{r<1}", r"d \le 3", (1, 2, 3), Spherical),
    Family("Circular", r"\tfrac2\pi (\arccos r - r\sqrt{1-r^2})\, 1_{r<1}", r"d \le 2", (1, 2), Circular),
    Family(
        "Cubic",
        r"(1 - 7r^2 + \tfrac{35}4 r^3 - \tfrac72 r^5 + \tfrac34 r^7)\, 1_{r<1}",
        r"d \le 3",
        (1, 2, 3),
        Cubic,
    ),
    Family("Askey", r"(1 - r)_+^\lambda", r"d \le 2\lambda - 1", (1, 2, 3), _make(Askey, power=2.0)),
    Family(
        "GeneralizedWendland",
        r"\tfrac1{B(2\kappa, \mu+1)} \int_r^1 u (u^2-r^2)^{\kappa-1} (1-u)^\mu\, du\; 1_{r<1}",
        r"d \le 2(\mu - \kappa) - 1",
        (1, 2, 3),
        _make(GeneralizedWendland, kappa=1.0, mu=3.0),
    ),
    Family("Wave", r"\sin(r)/r", r"d \le 3", (1, 2), Wave),
    Family(
        "DampedCosine",
        r"e^{-\lambda r} \cos r",
        r"\lambda \ge 1/\tan(\pi/(2d))",
        (1, 2, 3),
        _make(DampedCosine, damping=2.0),
    ),
    Family(
        "Periodic",
        r"\exp(-2 \textstyle\sum_a \sin^2(\pi h_a/p_a)/\ell_a^2)",
        ALL,
        (),
        _make(Periodic, period=1.0, lengthscale=0.7),
    ),
)
