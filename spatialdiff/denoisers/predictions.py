r"""What a network predicts, and how that determines the data.

The state is `u = α x + σ η + o`, `η = R z`. Each target is a combination `p = a x + b η`:

| name          | p           | data x = (b (u - o) - σ p) / (α b - σ a)             |
|---------------|-------------|------------------------------------------------------|
| `data`        | `x`         | `p`                                                  |
| `noise`       | `η`         | `(u - o - σ p) / α`                                  |
| `white_noise` | `z`         | `(u - o - σ R p) / α`;  needs a square `R`           |
| `velocity`    | `a x + b η` | above; `(a, b) = (-σ, α)`, `(-1, 1)` for `Rectified` |

All are linear in the prediction at fixed `u`, so they commute with conditional expectations
(docs/theory, "Denoising"; the velocity is that of Salimans & Ho 2022, arXiv 2202.00512, eq. 9).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes import Law, expand

PREDICTIONS = ("data", "noise", "white_noise", "velocity")


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
    """The target `p` that belongs to data `x` and coloured noise `η`, each `(B, C, *grid)`; `t` is `(B,)` or
    `()`.
    """
    if prediction == "data":
        return x
    if prediction == "noise":
        return noise
    if prediction == "white_noise":
        return law.covariance.whiten(noise)
    a, b = law.velocity_weights(t)
    return expand(a, x) * x + expand(b, x) * noise


def to_data(prediction: str, p: Tensor, u: Tensor, law: Law, t: Tensor) -> Tensor:
    """The data `x` that a prediction `p` stands for at the state `u`.

    Raises:
        ValueError: where the prediction does not determine the data: a noise prediction at `α_t = 0`.
    """
    if prediction == "data":
        return p
    centred = u - law.offset(t).to(u)
    alpha, sigma = law.alpha(t), law.sigma(t)
    if prediction == "velocity":
        a, b = law.velocity_weights(t)
        determinant = alpha * b - sigma * a
        require_nonzero(determinant, "a velocity prediction", t)
        return expand(b / determinant, p) * centred - expand(sigma / determinant, p) * p
    require_nonzero(alpha, f"a {prediction} prediction", t)
    noise = law.covariance.color(p) if prediction == "white_noise" else p
    return (centred - expand(sigma, p) * noise) / expand(alpha, p)


def convert(value: Tensor, u: Tensor, t: Tensor | float, law: Law, *, source: str, target: str) -> Tensor:
    """Rewrite a prediction of kind `source` at state `u` (both `(B, C, *grid)`) and times `(B,)` or `()` as
    `target`.
    """
    check_prediction(source, law.covariance)
    check_prediction(target, law.covariance)
    if source == target:
        return value
    times = torch.as_tensor(t, dtype=torch.float64, device=u.device)
    x = to_data(source, value, u, law, times)
    return x if target == "data" else to_target(target, x, law.noise(u, times, x), law, times)


def require_nonzero(coefficient: Tensor, what: str, t: Tensor) -> None:
    if bool((coefficient == 0).any()):
        raise ValueError(
            f"{what} does not determine the data at t={t.flatten().tolist()[0]:g}, where the state holds "
            f"none of it "
            "(α=0); use prediction='data', or preconditioning='edm' or 'wiener'"
        )
