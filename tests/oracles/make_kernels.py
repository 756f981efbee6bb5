"""Writes kernels.json: correlations and spectral densities to 20 digits by mpmath, from the definitions.

Correlations: Matérn through the modified Bessel function, any ν (Rasmussen & Williams 2006, eq. 4.14).
Spectral densities: the d-dimensional Fourier integral done as a Hankel transform ``(2π)^{d/2} w^{1-d/2} ∫
ρ(r) J_{d/2-1}(w r) r^{d/2} dr`` (Stein 1999, section 2.7), by quadrature, with no closed form of the
spectrum. Run once; the file is what the tests read.
"""

from __future__ import annotations

import json
from pathlib import Path

import mpmath

mpmath.mp.dps = 30


def matern(nu):
    def rho(r):
        if r == 0:
            return mpmath.mpf(1)
        s = mpmath.sqrt(2 * nu) * r
        return 2 ** (1 - nu) / mpmath.gamma(nu) * s**nu * mpmath.besselk(nu, s)

    return rho


def gaussian(r):
    return mpmath.exp(-(r**2) / 2)


def hankel(rho, w, d):
    order = mpmath.mpf(d) / 2 - 1
    scale = (2 * mpmath.pi) ** (mpmath.mpf(d) / 2) * w ** (-order)

    def integrand(r):
        return rho(r) * mpmath.besselj(order, w * r) * r ** (mpmath.mpf(d) / 2)

    # absolutely convergent: pieces of half a period, to where ρ is below 1e-26
    edges = [mpmath.pi / w * k for k in range(int(60 * w / mpmath.pi) + 2)]
    return scale * mpmath.quad(integrand, [*edges[:-1], edges[-1]], maxdegree=7)


def main() -> None:
    rows = []
    families = {f"matern{float(nu)}": matern(mpmath.mpf(nu)) for nu in (0.5, 1.5, 2.5)}
    families["gaussian"] = gaussian
    families["matern1.5*gaussian"] = lambda r: matern(mpmath.mpf(1.5))(r) * gaussian(r)
    families["matern0.5*matern2.5"] = lambda r: matern(mpmath.mpf(0.5))(r) * matern(mpmath.mpf(2.5))(r)
    for name, rho in families.items():
        correlation = {
            str(r): mpmath.nstr(rho(mpmath.mpf(r)), 20) for r in ("0", "0.001", "0.1", "0.7", "1", "2.5", "8")
        }
        density = {
            f"{d},{w}": mpmath.nstr(hankel(rho, mpmath.mpf(w), d), 20)
            for d in (1, 2, 3)
            for w in ("0.3", "1.0", "4.0")
        }
        rows.append({"kernel": name, "correlation": correlation, "spectral_density": density})
    Path(__file__).with_name("kernels.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
