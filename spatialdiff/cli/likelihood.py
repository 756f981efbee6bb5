"""`spatialdiff likelihood`: how probable are held-out data under a trained model?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from spatialdiff.cli.command import Command, absolute, arguments, resolved, say
from spatialdiff.cli.evaluate import data_of
from spatialdiff.cli.files import read_fit
from spatialdiff.cli.objects import seeded
from spatialdiff.cli.sample import trained_denoiser
from spatialdiff.data import redequantised
from spatialdiff.likelihood import Likelihood, evidence_bound
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from spatialdiff.data import FieldData
    from spatialdiff.fitting import FitResult


def likelihood(
    out: RunFolder,
    config: str,
    run: str,
    part: Literal["test", "train"] = "test",
    n: int | None = None,
    samples: int = 32,
    options: dict[str, Any] | None = None,
    weights: Literal["ema", "last"] = "ema",
    batch: int = 256,
    seed: int = 0,
) -> None:
    """Bound the log-density of held-out data: bits per dimension of images, nats per site of fields.

    Args:
        run: run folder of `spatialdiff train`.
        part: the held-out fields, or those of training.
        n: how many of the part's first fields; all where None.
        samples: evaluations of the network per field, an even number.
        options: further options of spatialdiff.likelihood.evidence_bound, such as {decoder: network}.
        weights: the averaged weights, or the last ones.
        batch: fields evaluated at once.
        seed: seed of the draws, those of the dequantisation included.
    """
    if batch < 1 or (n is not None and n < 1):
        raise ValueError(f"n and batch must be at least 1, got n={n} and batch={batch}.")
    data, saved = data_of(run), read_fit(run)
    denoiser = trained_denoiser(run, weights == "ema")
    generator = seeded(seed)
    fields = _fields(data, part, generator)[:n]
    if not len(fields):
        raise ValueError(f"{data.name} has no fields in its part {part!r}.")
    begun = time.perf_counter()
    bounds = [
        evidence_bound(
            denoiser, each, samples=samples, batch_size=batch, generator=generator, **(options or {})
        )
        for each in fields.split(batch)
    ]
    seconds = time.perf_counter() - begun
    bound, gaussian = _joined(bounds), _gaussian(saved.fit, fields)
    rows = summary({"model": bound, "fitted Gaussian": gaussian}, data)
    found = out.describe(config, seed)
    out.write_csv("metrics.csv", rows)
    out.write_arrays(
        "likelihood.npz",
        value=bound.value,
        standard_error=bound.standard_error,
        gaussian=gaussian.value,
        **{f"term_{name}": term for name, term in bound.terms.items()},
    )
    lines = [described(row) for row in rows]
    terms = ", ".join(f"{name} {float(term.mean()) / bound.sites:.5f}" for name, term in bound.terms.items())
    page = Page(
        f"Likelihood of {data.name}",
        f"{len(fields)} {'held-out' if part == 'test' else 'training'} fields of shape {data.grid.shape}, "
        f"{bound.evaluations} evaluations each, {seconds:.1f} s.",
    )
    page.code("\n".join(lines))
    page.pairs({"terms of the bound, nats per site": terms, "convention": convention(data)})
    page.provenance(config, seed, found).save(out / "report.html")
    say(*lines, f"terms of the bound, nats per site: {terms}", f"({convention(data)})", f"→ {out}")


def summary(laws: dict[str, Likelihood], data: FieldData) -> list[dict[str, Any]]:
    """A row for each law: nats per site with the standard error over fields; of quantised data bits too."""
    rows = []
    for name, each in laws.items():
        row: dict[str, Any] = {
            "law": name,
            "nats_per_site": each.mean,
            "nats_error": each.mean_standard_error,
            "monte_carlo_error": float(each.standard_error.square().mean().sqrt())
            / each.sites
            / math.sqrt(len(each.value)),
            "fields": len(each.value),
            "evaluations": each.evaluations,
        }
        if data.levels is not None:
            row["bits_per_dim"] = float(each.bits_per_dim(data.levels, scale=data.scale).mean())
            row["bits_error"] = each.mean_standard_error / math.log(2.0)
        rows.append(row)
    return rows


def described(row: dict[str, Any]) -> str:
    """A row of `summary` as a line of text."""
    line = f"{row['law']}: {row['nats_per_site']:.5f} ± {row['nats_error']:.5f} nats per site"
    if "bits_per_dim" in row:
        line += f", {row['bits_per_dim']:.4f} ± {row['bits_error']:.4f} bits per dimension"
    return line


def convention(data: FieldData) -> str:
    """What the numbers are of."""
    if data.levels is None:
        return "density of the standardised fields; standard errors over fields"
    return (
        f"uniform dequantisation of {data.levels} levels; all pixels counted; standard errors over images; "
        f"lower bits are better"
    )


def _fields(data: FieldData, part: str, generator: torch.Generator) -> Tensor:
    if data.levels is not None:
        return redequantised(data, part, generator=generator)
    fields: Tensor = getattr(data, part)
    return fields


def _joined(parts: Sequence[Likelihood]) -> Likelihood:
    """The likelihoods of several batches as one."""
    terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
    value = torch.cat([part.value for part in parts])
    error = torch.cat([part.standard_error for part in parts])
    return Likelihood(value, error, parts[0].sites, terms, parts[0].evaluations)


def _gaussian(fit: FitResult, fields: Tensor) -> Likelihood:
    """The exact log-density under the fitted law, which the model starts from under `wiener`."""
    centred = fields.double() - torch.as_tensor(fit.mean).double()
    gamma = fit.covariance.to(torch.float64)
    with torch.no_grad():
        if gamma.channels is None:
            value = torch.stack([gamma.log_prob(centred[:, c]) for c in range(centred.shape[1])]).sum(0)
        else:
            value = gamma.log_prob(centred)
    return Likelihood(value, torch.zeros_like(value), centred[0].numel())


COMMAND = Command("likelihood", likelihood, {})


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    config["run"] = absolute(config["run"])
    out = RunFolder.create("likelihood", config["run_dir"], overwrite=config["overwrite"])
    likelihood(out, resolved(parser, config), **arguments(parser, config))
