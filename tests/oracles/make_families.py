"""Writes families.json: correlations, their derivatives and spectral densities by mpmath, from the
definitions.

Correlations are the defining formulas, the derivatives (in ``r`` and in every shape parameter) numerical at
50 digits. Spectral densities are the Hankel transform
``(2π)^{d/2} w^{1-d/2} ∫ ρ(r) J_{d/2-1}(w r) r^{d/2} dr`` (Stein 1999, section 2.7), summed between the zeros
of the Bessel function (and extrapolated); no closed form of a spectrum is used. Run once, half an hour; the
file is what the tests read.
"""

from __future__ import annotations

import json
from pathlib import Path

import mpmath
from mpmath import mpf

ENDLESS = ("1e-8", "1e-6", "1e-4", "0.01", "0.1", "0.5", "1", "2.5", "7", "20", "50")
COMPACT = ("1e-8", "1e-4", "0.01", "0.1", "0.3", "0.5", "0.9", "0.999")


def matern(r, nu):
    s = mpmath.sqrt(2 * nu) * r
    return 2 ** (1 - nu) / mpmath.gamma(nu) * s**nu * mpmath.besselk(nu, s)


def wendland(r, kappa, mu):
    """The hypergeometric form (Chernih & Hubbert 2014), compared with the defining integral in `main`."""
    if kappa == 0:
        return (1 - r) ** mu
    log_constant = mpmath.loggamma(2 * kappa + mu + 1) - mpmath.loggamma(kappa + mu + 1)
    constant = mpmath.exp(log_constant) * mpmath.gamma(kappa) / mpmath.gamma(2 * kappa) / 2 ** (mu + 1)
    z = (1 - r) * (1 + r)
    return constant * z ** (kappa + mu) * mpmath.hyp2f1(mu / 2, (mu + 1) / 2, kappa + mu + 1, z)


def wendland_integral(r, kappa, mu):
    def integrand(u):
        return u * (u**2 - r**2) ** (kappa - 1) * (1 - u) ** mu

    return mpmath.quad(integrand, [r, (1 + r) / 2, 1]) / mpmath.beta(2 * kappa, mu + 1)


FAMILIES = {
    "Matern": matern,
    "PoweredExponential": lambda r, alpha: mpmath.exp(-(r**alpha)),
    "GeneralizedCauchy": lambda r, alpha, beta: (1 + r**alpha) ** (-beta / alpha),
    "Cauchy": lambda r, beta: (1 + r**2) ** (-beta / 2),
    "RationalQuadratic": lambda r, alpha: (1 + r**2 / (2 * alpha)) ** (-alpha),
    "Spherical": lambda r: 1 - 3 * r / 2 + r**3 / 2,
    "Circular": lambda r: 2 / mpmath.pi * (mpmath.acos(r) - r * mpmath.sqrt(1 - r**2)),
    "Cubic": lambda r: 1 - 7 * r**2 + mpf(35) / 4 * r**3 - mpf(7) / 2 * r**5 + mpf(3) / 4 * r**7,
    "Askey": lambda r, power: (1 - r) ** power,
    "GeneralizedWendland": wendland,
    "Wave": lambda r: mpmath.sin(r) / r,
    "DampedCosine": lambda r, damping: mpmath.exp(-damping * r) * mpmath.cos(r),
}
# where the correlation is below 1e-18; the others are summed over half periods and extrapolated
ENDS = {"DampedCosine": 110}
COMPACT_FAMILIES = ("Spherical", "Circular", "Cubic", "Askey", "GeneralizedWendland")

# family, shape parameters, dimensions of the spectral densities
CASES = [
    *(("Matern", {"nu": nu}, ())
      for nu in ("0.1", "0.3", "0.5", "1", "1.001", "1.5", "2.5", "3.7", "6.5", "10")),
    ("PoweredExponential", {"alpha": "0.5"}, (1, 2, 3)),
    ("PoweredExponential", {"alpha": "1"}, (1, 2, 3)),
    ("PoweredExponential", {"alpha": "1.5"}, (1, 2, 3)),
    ("PoweredExponential", {"alpha": "1.95"}, (1, 2, 3)),
    ("PoweredExponential", {"alpha": "2"}, (1, 2, 3)),
    ("GeneralizedCauchy", {"alpha": "1.3", "beta": "4.2"}, (1, 2, 3)),
    ("GeneralizedCauchy", {"alpha": "0.6", "beta": "1.5"}, (1,)),
    ("GeneralizedCauchy", {"alpha": "2", "beta": "9"}, (1, 2, 3)),
    ("Cauchy", {"beta": "2"}, (1,)),
    ("Cauchy", {"beta": "5"}, (1, 2, 3)),
    ("RationalQuadratic", {"alpha": "0.8"}, (1,)),
    ("RationalQuadratic", {"alpha": "3"}, (1, 2, 3)),
    ("Spherical", {}, (1, 2, 3)),
    ("Circular", {}, (1, 2)),
    ("Cubic", {}, (1, 2, 3)),
    ("Askey", {"power": "1.3"}, (1,)),
    ("Askey", {"power": "2"}, (1, 2, 3)),
    ("Askey", {"power": "3.6"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "0", "mu": "2.2"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "0.1", "mu": "2.5"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "0.7", "mu": "3.1"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "1", "mu": "3"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "2", "mu": "4.5"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "2.5", "mu": "4.5"}, (1, 2, 3)),
    ("GeneralizedWendland", {"kappa": "3", "mu": "5"}, (1, 2, 3)),
    ("Wave", {}, ()),
    ("DampedCosine", {"damping": "0.4"}, (1,)),
    ("DampedCosine", {"damping": "2"}, (1, 2, 3)),
]  # fmt: skip


def derivative(function, x):
    """Central difference of relative step 1e-15 at 50 digits: relative error about 1e-30."""
    step = mpf(10) ** -15 * x
    return (function(x + step) - function(x - step)) / (2 * step)


def hankel(rho, w, d, end):
    order = mpf(d) / 2 - 1
    scale = (2 * mpmath.pi) ** (mpf(d) / 2) * w ** (-order)

    def integrand(r):
        return rho(r) * mpmath.besselj(order, w * r) * r ** (mpf(d) / 2)

    if end:
        pieces = 2 + int(w * end / mpmath.pi)
        return scale * mpmath.quad(integrand, mpmath.linspace(0, end, pieces + 1))
    # up to a zero of the Bessel function in pieces: there is a fractional power at 0
    first = {1: mpmath.pi / 2, 2: mpmath.besseljzero(0, 1), 3: mpmath.pi}[d] / w
    head = mpmath.quad(integrand, [0, *(first / mpf(4) ** k for k in range(16, -1, -1))])
    zeros = {
        1: lambda n: (n + mpf(1) / 2) * mpmath.pi / w,
        2: lambda n: mpmath.besseljzero(0, n + 1) / w,
        3: lambda n: (n + 1) * mpmath.pi / w,
    }
    return scale * (head + mpmath.quadosc(integrand, [first, mpmath.inf], zeros=zeros[d]))


def case(name, parameters, dimensions):
    compact = name in COMPACT_FAMILIES
    rho = FAMILIES[name]
    mpmath.mp.dps = 50
    exact = {key: mpf(value) for key, value in parameters.items()}
    points = []
    for text in COMPACT if compact else ENDLESS:
        r = mpf(text)
        row = {"r": text, "value": rho(r, **exact), "d_r": derivative(lambda x: rho(x, **exact), r)}
        for key in parameters:
            if not (key == "kappa" and exact[key] == 0):
                row[f"d_{key}"] = derivative(lambda x, key=key: rho(r, **{**exact, key: x}), exact[key])  # noqa: B023
        points.append({k: v if k == "r" else mpmath.nstr(v, 20) for k, v in row.items()})
    mpmath.mp.dps = 20
    density = {}
    for d in dimensions:
        for w in ("0.05", "0.7", "3", "25"):
            value = hankel(lambda r: rho(r, **exact), mpf(w), d, 1 if compact else ENDS.get(name))
            density[f"{d},{w}"] = mpmath.nstr(value, 16)
    return {"family": name, "parameters": parameters, "correlation": points, "spectral_density": density}


def main() -> None:
    for kappa, mu in ((1, 3), (2, 4.5), (2.5, 4.5)):
        r, kappa, mu = mpf("0.3"), mpf(kappa), mpf(mu)
        assert abs(wendland(r, kappa, mu) - wendland_integral(r, kappa, mu)) < mpf(10) ** -12
    rows = [case(*entry) for entry in CASES]
    Path(__file__).with_name("families.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
