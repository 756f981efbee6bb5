r"""Log-likelihoods of fields, and the units they are reported in.

For continuous fields: nats per site (and channel), `log p(x)/n`, of the density in the units of the data; no
offset of any kind.

For 8-bit data `v ∈ {0, …, 255}`: *uniform dequantisation*. With `x = offset + scale (v + U)/256`, U uniform
in `[0, 1)`, a density bounds the probability of the integers (Theis et al. 2016, arXiv 1511.01844, eq. 4),
`log P(v) ≥ E_U log p(x) + n log(scale/256)`, so that

    bits per dimension = -log₂ p(x)/n + log₂ 256 - log₂ scale.

`scale` is the width of the range of the data: 1 for data in `[0, 1)`, 2 for data in `[-1, 1)`, 1/std after a
division by std.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood, or a lower bound of it, of each field of a batch.

    Args:
        value: nats per field, `(B,)`, float64.
        standard_error: of `value`, from the Monte Carlo behind it, `(B,)`; 0 where there is none.
        sites: n, the values of a field: sites times channels.
        terms: what `value` is the sum of, `(B,)` each.
        evaluations: of the denoiser, per field.
    """

    value: Tensor
    standard_error: Tensor
    sites: int
    terms: dict[str, Tensor] = field(default_factory=dict)
    evaluations: int = 0

    @property
    def nats_per_site(self) -> Tensor:
        """`value / n`, `(B,)`."""
        return self.value / self.sites

    @property
    def nats_per_site_standard_error(self) -> Tensor:
        """Standard error of `nats_per_site`, `(B,)`."""
        return self.standard_error / self.sites

    @property
    def mean(self) -> float:
        """Mean over the fields, nats per site."""
        return float(self.nats_per_site.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of `mean` as an estimate for the population of fields, Monte Carlo included.

        From the spread of the fields; of a single field its Monte-Carlo standard error.
        """
        if len(self.value) == 1:
            return float(self.standard_error[0]) / self.sites
        return float(self.nats_per_site.std()) / math.sqrt(len(self.value))

    def bits_per_dim(self, levels: int = 256, *, scale: float = 1.0) -> Tensor:
        """`-log₂ p(x)/n + log₂ levels - log₂ scale`, `(B,)`: the code length of dequantised integer data.

        Args:
            levels: of the integers, 256 for 8 bits.
            scale: width of the range of the data that the density was taken of: 1 for `[0, 1)`, 2 for
                `[-1, 1)`; `dequantise` makes such data.

        Raises:
            ValueError: fewer than two levels, or a scale that is not positive.
        """
        if levels < 2 or not scale > 0.0:
            raise ValueError(f"levels={levels} and scale={scale:g}; needed at least 2 levels and scale > 0")
        return -self.nats_per_site / math.log(2.0) + math.log2(levels) - math.log2(scale)

    @property
    def bits_standard_error(self) -> Tensor:
        """Standard error of `bits_per_dim` `(B,)`, whatever the levels and the scale."""
        return self.standard_error / (self.sites * math.log(2.0))

    def __repr__(self) -> str:
        terms = ", ".join(
            f"{name} {float(part.mean()) / self.sites:.5g}" for name, part in self.terms.items()
        )
        return (
            f"Likelihood({len(self.value)} fields of {self.sites} values: {self.mean:.6g} ± "
            f"{self.mean_standard_error:.2g} nats per site; {terms})"
        )


def dequantise(
    values: Tensor,
    levels: int = 256,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`offset + scale (v + U)/levels`, U uniform in `[0, 1)`, of integers `v` from 0 to `levels - 1`.

    Raises:
        ValueError: values that are not whole or out of range; fewer than 2 levels, a scale that is not
            positive.
    """
    if levels < 2 or not (math.isfinite(scale) and scale > 0.0):
        raise ValueError(
            f"levels={levels!r} and scale={scale!r}; dequantise needs at least 2 levels and a positive, "
            "finite scale"
        )
    numbers = values.to(dtype)
    whole = bool((numbers == numbers.round()).all())
    if not whole or bool((numbers < 0).any()) or bool((numbers >= levels).any()):
        raise ValueError(
            f"dequantise needs whole numbers from 0 to {levels - 1}; got values from "
            f"{float(numbers.min()):g} to {float(numbers.max()):g}"
        )
    noise = torch.rand(values.shape, generator=generator, dtype=dtype, device=values.device)
    return offset + scale * (numbers + noise) / levels
