"""What cross-validation found: predictions, errors, scores, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.domains import Domain
from spatialdiff.fitting.inference.scores import (
    gaussian_crps,
    gaussian_interval_score,
    gaussian_log_score,
    gaussian_pit,
    normal_quantile,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Validation:
    """Predictions of values that were left out.

    Fields have the shape of the data, with NaN where nothing was observed or left out.

    Attributes:
        domain: where the data are.
        values: the data.
        errors: value minus prediction.
        variance: of the prediction; without nugget and noise where ``noise_free`` was asked for.
        predictive_variance: of the prediction of the *datum*, nugget and noise included; what scores use.
        folds: label of the fold of each site in a list, negative where never left out.
        description: how folds were made.
    """

    domain: Domain
    values: Tensor
    errors: Tensor
    variance: Tensor
    predictive_variance: Tensor
    folds: Tensor
    description: str

    @property
    def mean(self) -> Tensor:
        """The predictions."""
        return self.values - self.errors

    @property
    def standardised(self) -> Tensor:
        """Errors over their standard deviations: of mean 0 and variance 1 where the model is right."""
        return self.errors / self.predictive_variance.sqrt()

    @property
    def count(self) -> int:
        """Number of values that were predicted."""
        return int(torch.isfinite(self.errors).sum())

    def _kept(self) -> tuple[Tensor, Tensor, Tensor]:
        keep = torch.isfinite(self.errors)
        return self.mean[keep], self.predictive_variance[keep].sqrt(), self.values[keep]

    @property
    def bias(self) -> float:
        """Mean error."""
        return float(self.errors.nanmean())

    @property
    def rmse(self) -> float:
        """Root mean square error."""
        return math.sqrt(float(self.errors.square().nanmean()))

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return float(self.errors.abs().nanmean())

    @property
    def standardised_variance(self) -> float:
        """Mean square of the standardised errors; 1 where variances are right, above it where too small."""
        return float(self.standardised.square().nanmean())

    @property
    def crps(self) -> float:
        """Mean continuous ranked probability score, in the unit of the data; smaller is better."""
        return float(gaussian_crps(*self._kept()).mean())

    @property
    def log_score(self) -> float:
        """Mean negative log density of a value, nats; smaller is better."""
        return float(gaussian_log_score(*self._kept()).mean())

    def interval_score(self, level: float = 0.95) -> float:
        """Mean interval score of central intervals of ``level``; smaller is better."""
        return float(gaussian_interval_score(*self._kept(), level).mean())

    def coverage(self, level: float = 0.95) -> float:
        """Share of the values inside their central intervals of ``level``."""
        z = self.standardised[torch.isfinite(self.errors)]
        return float((z.abs() <= normal_quantile(level)).double().mean())

    @property
    def pit(self) -> Tensor:
        """Probability integral transforms of the values, ``(count,)``: uniform where the model is right."""
        return gaussian_pit(*self._kept())

    @property
    def explained(self) -> float:
        """Share of the variance of the values that the predictions explain."""
        keep = torch.isfinite(self.errors)
        return 1.0 - float(self.errors[keep].square().mean() / self.values[keep].var(correction=0))

    def __str__(self) -> str:
        rows = [
            ("mean error", self.bias, "0"),
            ("mean absolute error", self.mae, "smaller"),
            ("root mean square error", self.rmse, "smaller"),
            ("explained variance", self.explained, "1"),
            ("variance of standardised errors", self.standardised_variance, "1"),
            ("CRPS", self.crps, "smaller"),
            ("log score", self.log_score, "smaller"),
            *((f"coverage of {level:.0%}", self.coverage(level), f"{level:g}") for level in (0.5, 0.8, 0.95)),
        ]
        lines = [f"Cross-validation of {self.count} values, {self.description} (parameters held)", ""]
        lines += [f"  {name:<32}  {value:>11.5g}  ideal: {ideal}" for name, value, ideal in rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Validation({self.count} values, {self.description}, rmse={self.rmse:.4g}, crps={self.crps:.4g})"
        )

    def plot(self) -> Figure:
        """Values against predictions, the Q–Q diagram of standardised errors, and the histogram of the
        probability integral transform."""
        from spatialdiff.fitting.inference.pictures import validation_picture

        return validation_picture(self)
