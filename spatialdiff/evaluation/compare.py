r"""One comparison of generated fields with real ones, and with what real ones score.

Most distances between samples are biased: they are positive for two samples of the same law, by an amount
that depends on how large the samples are. So every number of a column is computed on samples of one size
:math:`h`,

.. math:: \text{error} = \operatorname{mean}_s d(G_s, B_s), \qquad
   \text{floor} = \operatorname{mean}_s d(A_s, B_s),

over seeded random splits :math:`s` of the real fields into disjoint :math:`A_s, B_s` and random subsets
:math:`G_s` of the generated ones, with :math:`|A_s| = |B_s| = |G_s| = h`: half of the real fields, or all
fields of the smallest generated set if that is fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.evaluation.checks import Standard, as_fields, check_grid
from spatialdiff.evaluation.curves import curves
from spatialdiff.evaluation.energy import ENERGY, energy_distance
from spatialdiff.evaluation.gradients import CURVATURE, GRADIENTS, curvature, slopes
from spatialdiff.evaluation.marginal import MARGINAL, moments
from spatialdiff.evaluation.metric import Metric
from spatialdiff.evaluation.nearest import copying, nearest_distance
from spatialdiff.evaluation.report import FLOOR, REFERENCE, TRAINING, Report
from spatialdiff.evaluation.spectrum import SPECTRUM
from spatialdiff.evaluation.variogram import VARIOGRAM

METRICS: tuple[Metric, ...] = (SPECTRUM, VARIOGRAM, MARGINAL, GRADIENTS, CURVATURE, ENERGY)
# order statistics of more values than this say nothing more
POOLED = 2**17
# fields kept for the pictures
KEPT = 16
# fields between which all distances are taken for the full energy distance
PAIRED = 2000


def compare(
    generated: Tensor | Mapping[str, Tensor],
    reference: Tensor,
    grid: Grid,
    *,
    training: Tensor | None = None,
    metrics: Sequence[Metric] = METRICS,
    splits: int = 8,
    generator: torch.Generator | None = None,
) -> Report:
    r"""Compare generated fields with real ones that no model has seen.

    Every set is first brought to the units of the reference, :math:`(x - m)/s` with mean and standard
    deviation of its values per channel. Then, for each metric, the error of each set, the floor (two
    halves of the reference) and, with `training`, the error of the training fields themselves: no model of
    the training fields can be asked for less.

    Halves are random. Where the fields are patches of one map or years of one record, halves overlap or
    neighbour each other and resemble each other more than two independent samples would, so the floor is
    too low; fields from another part of the map differ more, and the row of the training data shows by how
    much.

    Args:
        generated: fields `(N, *grid)` or `(N, C, *grid)`, at least two; or a dictionary of them by name.
        reference: held-out real fields, at least four.
        grid: where all of them live; an axis of at least four sites.
        training: the fields that the model learned from; adds their row, and the distance to the nearest of
            them (copying).
        metrics: the columns.
        splits: number of random splits.
        generator: source of the splits; seed 0 where it is not given.

    Returns:
        the report: `errors(name)`, `floor`, `table()`, `numbers`, `curves`, `plot()`, `save(folder)`.

    Raises:
        ValueError: no set, a wrong shape, channels that differ, missing or infinite values (how many,
        where), too few
            fields, a constant channel in the reference, fewer than one split.
    """
    check_grid(grid)
    if splits < 1:
        raise ValueError(f"splits={splits}; needed at least 1.")
    real = as_fields(reference, grid, "The reference fields", least=4)
    named: Mapping[str, Any] = generated if isinstance(generated, Mapping) else {"generated": generated}
    if not named:
        raise ValueError("There are no generated fields: the dictionary is empty.")
    sets = {name: as_fields(x, grid, f"The generated fields {name!r}", least=2) for name, x in named.items()}
    if taken := {REFERENCE, TRAINING, FLOOR} & set(sets):
        raise ValueError(f"{sorted(taken)} name rows of the report; name the generated fields otherwise.")
    learned = None if training is None else as_fields(training, grid, "The training fields", least=2)
    everything = sets if learned is None else {**sets, TRAINING: learned}
    for name, x in everything.items():
        if x.shape[1] != real.shape[1]:
            raise ValueError(
                f"The fields {name!r} have {x.shape[1]} channel(s) and the reference {real.shape[1]}; "
                "needed as many."
            )
    source = torch.Generator().manual_seed(0) if generator is None else generator
    standard = Standard(real)
    real, everything = standard(real), {name: standard(x) for name, x in everything.items()}
    size = min(len(real) // 2, *(len(x) for x in everything.values()))
    parts = _halves(len(real), size, splits, source)
    subsets: dict[int, list[Tensor]] = {}
    for x in everything.values():
        if len(x) not in subsets:
            subsets[len(x)] = _subsets(len(x), size, splits, source)
    chosen = {name: subsets[len(x)] for name, x in everything.items()}
    floor, errors = _measure(metrics, real, everything, parts, chosen, grid, source)

    nearest: dict[str, dict[str, float]] = {}
    if learned is not None:
        usual = nearest_distance(real, everything[TRAINING])
        nearest = {
            name: copying(nearest_distance(everything[name], everything[TRAINING]), usual) for name in sets
        }
    shown = {REFERENCE: real, **{name: everything[name] for name in sets}}
    scored = shown if learned is None else {**shown, TRAINING: everything[TRAINING]}
    return Report(
        names=list(sets),
        size=size,
        splits=splits,
        counts={name: len(x) for name, x in scored.items()},
        scores={name: {m: _mean(found) for m, found in by.items()} for name, by in errors.items()},
        floor={m: _mean(found) for m, found in floor.items()},
        floor_spread={m: float(torch.tensor(found).std(correction=0)) for m, found in floor.items()},
        meanings={metric.name: metric.meaning for metric in metrics},
        energy={name: _energy(everything[name], real) for name in sets},
        nearest=nearest,
        moments={name: _moments(x, grid) for name, x in scored.items()},
        curves=curves(shown, grid, [real[part] for pair in parts for part in pair]),
        fields={name: _spread(x, KEPT).float() for name, x in shown.items()},
        grid=grid,
    )


def _halves(number: int, size: int, splits: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Disjoint random samples `(A_s, B_s)`; every second split swaps the two of the one before."""
    pairs: list[tuple[Tensor, Tensor]] = []
    while len(pairs) < splits:
        order = torch.randperm(number, generator=generator)
        one, other = order[:size], order[-size:]
        pairs += [(one, other), (other, one)]
    return pairs[:splits]


def _subsets(number: int, size: int, splits: int, generator: torch.Generator) -> list[Tensor]:
    """Random samples of `size` fields of `number` that use all fields equally often, as far as that goes.

    The sets of one comparison that are equally large get the same ones, so that sets that were
    drawn from the same noise are compared in pairs.
    """
    per_order = number // size
    orders = [torch.randperm(number, generator=generator) for _ in range(-(-splits // per_order))]
    return [part for order in orders for part in order[: per_order * size].split(size)][:splits]


def _measure(
    metrics: Sequence[Metric],
    real: Tensor,
    sets: Mapping[str, Tensor],
    parts: Sequence[Sequence[Tensor]],
    chosen: Mapping[str, Sequence[Tensor]],
    grid: Grid,
    generator: torch.Generator,
) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    """Metric → floor of each split, and name → metric → error on each split."""
    floor: dict[str, list[float]] = {}
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in sets}
    for metric in metrics:
        everywhere = metric.statistics(real, grid)
        kept = _kept(metric, everywhere, len(parts[0][0]), generator)
        rows = everywhere if kept is None else everywhere[..., kept].float()
        halves = [[metric.summary(rows[part]) for part in pair] for pair in parts]
        floor[metric.name] = [metric.distance(one, other) for one, other in halves]
        for name, x in sets.items():
            used, place = torch.cat(list(chosen[name])).unique(return_inverse=True)
            rows = metric.statistics(x[used], grid)
            rows = rows if kept is None else rows[..., kept].float()
            errors[name][metric.name] = [
                metric.distance(metric.summary(rows[part]), other)
                for part, (_, other) in zip(place.split(len(parts[0][0])), halves, strict=True)
            ]
    return floor, errors


def _kept(metric: Metric, rows: Tensor, size: int, generator: torch.Generator) -> Tensor | None:
    """Which values of each field a pooled metric uses, the same for all sets; None: the rows as they are."""
    if not metric.pooled:
        return None
    number = min(rows.shape[-1], max(1, POOLED // size))
    return torch.randperm(rows.shape[-1], generator=generator)[:number]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(fields: Tensor, most: int) -> Tensor:
    """At most so many fields, evenly spaced."""
    return fields[torch.linspace(0, len(fields) - 1, min(most, len(fields))).long()]


def _energy(x: Tensor, real: Tensor) -> dict[str, float]:
    value, error = energy_distance(_spread(x, PAIRED), _spread(real, PAIRED))
    return {"value": value, "standard error": error}


def _moments(x: Tensor, grid: Grid) -> dict[str, dict[str, float]]:
    return {
        "values": moments(x.flatten(2)),
        "slopes": moments(slopes(x, grid)),
        "curvature": moments(curvature(x, grid)),
    }
