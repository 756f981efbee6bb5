"""Monte-Carlo error of evidence bounds: the closed arrangement against the paper's, at equal evaluations.

    python benchmarks/bound_variance.py

Fields of 16 × 16 sites from a Matérn 3/2 covariance. The denoiser is their exact posterior mean; the Gaussian
model that it was "fitted" with is wrong (exponential, another variance), so that the control variate is no
more than a fitted one can be. Every row is the same bound of the same fields in expectation; figures are the
standard error of one field, in nats per site, at 64 evaluations of the denoiser, the root mean square over
the fields of the spread between repetitions.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern

GRID = sd.Grid((16, 16))
EVALUATIONS, FIELDS, REPEATS = 64, 4, 12
PROCESSES = {
    "VP": sd.VP,
    "CLD": sd.CLD,
    "ALDA": sd.ALDA,
    "MALDA, K = 3": lambda gamma: sd.MALDA(gamma, variables=3),
}
ARRANGEMENTS = {
    "closed, fitted model as control": {"decoder": "gaussian"},
    "closed": {"control": False, "decoder": "gaussian"},
    "closed, uniform times": {"control": False, "decoder": "gaussian", "proposal": "time"},
    "paper, denoising": {"arrangement": "paper", "decoder": "gaussian"},
    "paper, denoising, uniform times": {"arrangement": "paper", "decoder": "gaussian", "proposal": "time"},
    "paper, implicit": {"arrangement": "paper", "decoder": "gaussian", "form": "implicit"},
    "closed, implicit": {"form": "implicit", "decoder": "gaussian"},
}


class Oracle(nn.Module):
    """The exact posterior mean in the place of a network."""

    def __init__(self, oracle: nn.Module) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        mean: Tensor = self.oracle(u, t)
        return mean


def cosine(kernel: nn.Module) -> sd.Covariance:
    return sd.covariance(kernel, GRID, method="cosine").double().requires_grad_(False)


def standard_errors(law: nn.Module, data: sd.Covariance, fitted: sd.Covariance) -> dict[str, float]:
    """Standard error of one field at the given evaluations, nats per site, for every arrangement."""
    network = Oracle(sd.oracles.GaussianDenoiser(law, data))
    denoiser = sd.Denoiser(network, law, data=fitted)
    fields = data.sample((FIELDS, 1), generator=torch.Generator().manual_seed(0))
    batch = fields.repeat(REPEATS, 1, 1, 1)
    found = {}
    for name, options in ARRANGEMENTS.items():
        bound = sd.likelihood.evidence_bound(
            denoiser,
            batch,
            samples=EVALUATIONS,
            t0=float(law.time_of_log_snr(torch.tensor(8.0))),
            generator=torch.Generator().manual_seed(1),
            **options,
        )
        spread = bound.nats_per_site.reshape(REPEATS, FIELDS).var(0)
        found[name] = float(spread.mean().sqrt())
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    data = cosine(Matern(nu=1.5, lengthscale=3.0))
    fitted = cosine(Exponential(lengthscale=4.0, variance=1.2))
    noises = {"white": sd.white(GRID).double(), "fitted": fitted}
    columns = [f"{process}, {noise}" for process in PROCESSES for noise in noises]
    rows = [
        standard_errors(make(gamma), data, fitted) for make in PROCESSES.values() for gamma in noises.values()
    ]
    print(f"| {EVALUATIONS} evaluations | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in ARRANGEMENTS:
        print(f"| {name} | " + " | ".join(f"{row[name]:.2g}" for row in rows) + " |")


if __name__ == "__main__":
    main()
