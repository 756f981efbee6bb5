"""What the numbers say, in sentences made from the numbers.

Every error is smaller for better fields, and has a base: what real data differ by. Two errors are called
different only where they differ by more than a tenth of the larger one and by more than a fifth of the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Errors = Mapping[str, float]
MARGIN, MARGIN_OF_BASE = 0.1, 0.2


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def below(a: float, b: float, floor: float) -> bool:
    """Whether `a` is smaller than `b` by more than the margin."""
    return b - a > max(MARGIN * abs(b), MARGIN_OF_BASE * abs(floor))


def against(name: str, errors: Errors, other: str, others: Errors, floor: Errors) -> str:
    """One sentence: where a row is better than another, where worse."""
    better = [metric for metric in errors if below(errors[metric], others[metric], floor[metric])]
    worse = [metric for metric in errors if below(others[metric], errors[metric], floor[metric])]
    if not better and not worse:
        return f"{name} cannot be told from {other} on any measure."
    parts = []
    if better:
        parts.append(f"closer to the real terrain than {other} on {listed(better)}")
    if worse:
        than = "from it" if better else f"from the real terrain than {other}"
        parts.append(f"further {than} on {listed(worse)}")
    rest = [metric for metric in errors if metric not in better and metric not in worse]
    tail = f"; on {listed(rest)} the two cannot be told apart" if rest else ""
    return f"{name} is {', and '.join(parts)}{tail}."


def at_floor(name: str, errors: Errors, floor: Errors) -> str | None:
    """One sentence on which errors are within a quarter of the floor; None where none is."""
    reached = [metric for metric in errors if errors[metric] <= 1.25 * floor[metric]]
    return f"{name} is within a quarter of the base on {listed(reached)}." if reached else None


def enough(by_steps: Mapping[int, Errors], floor: Errors) -> int:
    """Fewest steps from which on no error is larger, by the margin, than with the most steps."""
    counts = sorted(by_steps)
    last = by_steps[counts[-1]]
    fewest = counts[-1]
    for steps in reversed(counts):
        if any(below(last[metric], by_steps[steps][metric], floor[metric]) for metric in last):
            break
        fewest = steps
    return fewest


def reading(
    errors: Mapping[str, Mapping[int, Errors]], gaussian: Errors, base: Errors, reference: str, compared: str
) -> list[str]:
    """Sentences on all models: against the Gaussian field, the base, each other, and the number of steps.

    Args:
        errors: model → sampling steps → metric → error.
        gaussian: metric → error of the fitted Gaussian field.
        base: metric → what real data differ by.
        reference, compared: the models of the last sentences (white and correlated noise).
    """
    sentences = []
    counts = sorted(next(iter(errors.values())))
    for model, by_steps in errors.items():
        name = f"{model[0].upper()}{model[1:]} with {counts[-1]} steps"
        sentence = against(name, by_steps[counts[-1]], "the fitted Gaussian field", gaussian, base)
        reached = at_floor("It", by_steps[counts[-1]], base)
        sentences.append(sentence if reached is None else f"{sentence} {reached}")
    if len(counts) > 1:
        fewest = [f"{enough(by_steps, base)} for {model}" for model, by_steps in errors.items()]
        sentences.append(f"Steps after which more of them gain nothing on any measure: {listed(fewest)}.")
    for steps in dict.fromkeys((counts[0], counts[-1])):
        name = f"With {steps} steps, {compared}"
        sentences.append(against(name, errors[compared][steps], reference, errors[reference][steps], base))
    return sentences


def best_rows(
    errors: Mapping[str, Mapping[int, Errors]], gaussian: Errors, base: Errors
) -> list[tuple[str, str, float, float]]:
    """Of each metric: its name, the row with the smallest error, and this and the Gaussian field's error over
    the base."""
    found = []
    for metric in gaussian:
        rows = {
            f"{model}, {steps} steps": e[metric] for model, by in errors.items() for steps, e in by.items()
        }
        name = min(rows, key=lambda row, r=rows: r[row])  # type: ignore[misc]
        unit = base[metric] or float("nan")
        found.append((metric, name, rows[name] / unit, gaussian[metric] / unit))
    return found
