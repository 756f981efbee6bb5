r"""What a network predicts, and how that determines the data.

The statistic of the state is `y = α x + σ η̄`, `η̄ = R z̄`; for K = 1 it is `u - o`, and `η̄` the noise `η`. Each
target is a combination `p = a x + b η̄`:

| name             | p           | data x = (b y - σ p) / (α b - σ a)                   |
|------------------|-------------|------------------------------------------------------|
| `data`           | `x`         | `p`                                                  |
| `noise`          | `η̄`         | `(y - σ p) / α`                                      |
| `white_noise`    | `z̄`         | `(y - σ R p) / α`;  needs a square `R`               |
| `velocity`       | `a x + b η̄` | above; `(a, b) = (-σ, α)`, `(-1, 1)` for `Rectified` |
| `variable_noise` | `η`, K*C    | `(y - σ nᵀp) / α`, `η̄ = nᵀη`                         |

The last is that of the multivariate paper (Singhal et al. 2023, arXiv 2302.07261): the noise of each variable
in `u = φ ⊗ x + (L ⊗ I) η + o`; only its projection on `n = LᵀΣ⁻¹φ/√I` tells of the data.

All are linear in the prediction at fixed `u`, so they commute with conditional expectations
(docs/theory, "Denoising"; the velocity is that of Salimans & Ho 2022, arXiv 2202.00512, eq. 9).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.checks import warn
from spatialdiff.processes import Law

#: where on the way to the start a signal is looked at, and what float32 needs of it
LATE, DIGITS = 0.75, 1e-6
PREDICTIONS = ("data", "noise", "white_noise", "velocity", "variable_noise")


def check_prediction(prediction: str, covariance: Covariance) -> None:
    """Raise `ValueError` for an unknown prediction, or for `white_noise` where the factor R of Γ is not
    square.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}; the predictions are {', '.join(PREDICTIONS)}")
    if prediction == "white_noise" and tuple(covariance.factor_shape) != tuple(covariance.event_shape):
        raise ValueError(
            f"prediction='white_noise' needs Γ = R Rᵀ with a square R, but {type(covariance).__name__} "
            f"colours white noise of "
            f"shape {tuple(covariance.factor_shape)} into fields of {tuple(covariance.event_shape)}, so the "
            f"white noise cannot be "
            "recovered from the field; use prediction='noise', or a Γ of method='dense', 'torus' or 'cosine'"
        )


def to_target(prediction: str, x: Tensor, noise: Tensor, law: Law, t: Tensor) -> Tensor:
    """The target `p` that belongs to data `x` `(B, C, *grid)` and coloured noise; `t` is `(B,)` or `()`.

    The noise is `η̄` `(B, C, *grid)`, but `η` `(B, K*C, *grid)` for `variable_noise`.
    """
    if prediction == "data":
        return x
    if prediction in ("noise", "variable_noise"):
        return noise
    if prediction == "white_noise":
        return law.covariance.whiten(noise)
    a, b = law.velocity_weights(t)
    return law.scale(a, x) + law.scale(b, noise)


def to_data(prediction: str, p: Tensor, u: Tensor, law: Law, t: Tensor) -> Tensor:
    """The data `x` that a prediction `p` stands for at the state `u`.

    Raises:
        ValueError: where the prediction does not determine the data: a noise prediction at `α_t = 0`.
    """
    if prediction == "data":
        return p
    y = law.reduce(u, t)
    alpha, sigma = law.alpha(t), law.sigma(t)
    if prediction == "velocity":
        a, b = law.velocity_weights(t)
        determinant = alpha * b - sigma * a
        require_nonzero(determinant, "a velocity prediction", t)
        return law.scale(b / determinant, y) - law.scale(sigma / determinant, p)
    require_nonzero(alpha, f"a {prediction} prediction", t)
    noise = p
    if prediction == "white_noise":
        noise = law.covariance.color(p)
    elif prediction == "variable_noise":
        noise = law.reduce_noise(p, t)
    return law.scale(1.0 / alpha, y - law.scale(sigma, noise))


def convert(value: Tensor, u: Tensor, t: Tensor | float, law: Law, *, source: str, target: str) -> Tensor:
    """Rewrite a prediction of kind `source` at state `u` `(B, K*C, *grid)` and times `t` as `target`.

    Predictions are `(B, C, *grid)`; `variable_noise` is `(B, K*C, *grid)`, and as a `source` counts by its
    projection on what tells of the data.
    """
    check_prediction(source, law.covariance)
    check_prediction(target, law.covariance)
    if source == target:
        return value
    times = torch.as_tensor(t, dtype=torch.float64, device=u.device)
    x = to_data(source, value, u, law, times)
    if target == "data":
        return x
    noise = law.variable_noise if target == "variable_noise" else law.noise
    return to_target(target, x, noise(u, times, x), law, times)


def warn_of_division(prediction: str, law: Law) -> None:
    """Warn where a noise prediction divides by a signal that some mode loses long before the others."""
    if law.basis is None or prediction not in ("noise", "white_noise", "variable_noise"):
        return
    inside = law.end_time + LATE * (law.start_time - law.end_time)
    with torch.no_grad():
        smallest = float(law.alpha(inside).min())
    if smallest < DIGITS:
        warn(
            f"prediction={prediction!r} finds the data by dividing by α, which in a mode of this "
            f"{type(law).__name__} is {smallest:.2g} at t={inside:g}: the network's errors come out as many "
            "times larger. Use prediction='data' or 'velocity', or preconditioning='edm' or 'wiener'"
        )


def require_nonzero(coefficient: Tensor, what: str, t: Tensor) -> None:
    if bool((coefficient == 0).any()):
        raise ValueError(
            f"{what} does not determine the data at t={t.flatten().tolist()[0]:g}, where the state holds "
            f"none of it "
            "(α=0); use prediction='data', or preconditioning='edm' or 'wiener'"
        )
