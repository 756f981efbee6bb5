r"""What the Monte-Carlo error of a likelihood leaves of its estimates and of its comparisons.

The maximum of a likelihood whose gradient has the Monte-Carlo covariance :math:`C_g` is off by
:math:`H^{-1}g`, with the covariance :math:`H^{-1}C_gH^{-1}` beside the :math:`H^{-1}` of the data. The
largest share that it adds to the variance of any combination of parameters is the largest eigenvalue of
:math:`H^{-1/2}C_gH^{-1/2}`; at 0.05 standard errors are 2.5 % too small, and that much is let pass. Two fits
are told apart where their values differ by three standard errors; a difference that is known to half a nat
(one unit of AIC) needs no more, since no comparison hangs on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.stochastic import StochasticLikelihood

LIMIT, FACTOR, INDIFFERENT = 0.05, 3.0, 0.5


class MonteCarloError(RuntimeError):
    """The random error of a likelihood decides what it is asked for."""


def added_variance(
    likelihood: StochasticLikelihood, theta: Tensor, information: Tensor, interior: Tensor | None = None
) -> float:
    """Largest share that the probes add to the variance of a combination of estimates.

    Args:
        likelihood: the likelihood.
        theta: its maximum ``(p,)``.
        information: observed information there, ``(p, p)``.
        interior: indices of the parameters that are not at a bound; all by default.

    Returns:
        infinity where the information is not positive definite.
    """
    inside = torch.arange(len(theta)) if interior is None else interior
    if len(inside) == 0:
        return 0.0
    values, vectors = torch.linalg.eigh(information[inside][:, inside])
    if float(values[0]) <= 0.0:
        return math.inf
    whitening = vectors * values.rsqrt()
    covariance = likelihood.gradient_covariance(theta)[inside][:, inside]
    return float(torch.linalg.eigvalsh(whitening.T @ covariance @ whitening)[-1])


def require_precision(
    likelihood: StochasticLikelihood,
    theta: Tensor,
    information: Tensor,
    interior: Tensor | None = None,
    limit: float = LIMIT,
) -> float:
    """`added_variance`, refused above ``limit``.

    Raises:
        MonteCarloError: it is above ``limit`` (and finite: a flat likelihood is another complaint).
    """
    share = added_variance(likelihood, theta, information, interior)
    if limit < share < math.inf:
        wanted = math.ceil(likelihood.probes * share / limit)
        raise MonteCarloError(
            f"{likelihood.probes} random probes add {share:.0%} to the variance of an estimate, more than "
            f"the {limit:.0%} that leave its standard error as it is: give about {wanted} probes (probes= or "
            "imputations=), more neighbors=, or use method='vecchia'"
        )
    return share


def difference_is_resolved(difference: float, *errors: float) -> bool:
    """Whether the difference of two log-likelihoods with these standard errors is not theirs: three of their
    standard errors, or known to half a nat."""
    error = math.sqrt(sum(e * e for e in errors))
    return abs(difference) >= FACTOR * error or FACTOR * error <= INDIFFERENT


def require_resolved(difference: float, *errors: float) -> None:
    """Refuse a comparison that the Monte-Carlo error decides.

    Raises:
        MonteCarloError: the difference is within three standard errors, and these are above half a nat.
    """
    if not difference_is_resolved(difference, *errors):
        error = math.sqrt(sum(e * e for e in errors))
        raise MonteCarloError(
            f"the difference of {difference:.2f} nats between the log-likelihoods is within the Monte-Carlo "
            f"error of ±{error:.2f} (three times it is needed): raise probes= about "
            f"{math.ceil((FACTOR * error / max(abs(difference), INDIFFERENT)) ** 2)}-fold, or compare with "
            "method='vecchia' or 'exact'"
        )
