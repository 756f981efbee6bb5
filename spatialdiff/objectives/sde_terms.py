r"""Integrands of the bound in the form of the stochastic differential equation: per unit time, by the score.

With `du = F u dt + (Q^{1/2} ⊗ Γ^{1/2}) dW`, the score `s(u) = (Σ⁻¹ ⊗ Γ⁻¹)(φ ⊗ D + o - u)` of a posterior mean
D, and n values per field:

    denoising   ½ ‖s - ∇log q(u|·)‖²_{Q⊗Γ}
    implicit    ½ ‖s‖²_{Q⊗Γ} + ∇·((Q⊗Γ) s) + ½ n tr(QΣ⁻¹)

are equal in expectation, by integration by parts (Hyvärinen 2005; Singhal et al. 2023, arXiv 2302.07261,
eq. 9 and 10). The law given the data may be that of the state given x (hybrid) or given x and the auxiliary
start `v_0` (full). The score of the first is the conditional mean of that of the second, so the full
integrand is larger by a constant, the rate at which the state forgets v_0:

    ½E‖s - ∇log q(u|x,v_0)‖² = ½E‖s - ∇log q(u|x)‖² - d/dt (mutual information of u and v_0 given x).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.processes import NoiseProcess
from spatialdiff.processes.marginals import weighted_mean

CONDITIONINGS = ("hybrid", "full")


def check_conditioning(conditioning: str) -> str:
    """The name, or `ValueError` listing the known ones."""
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"unknown conditioning {conditioning!r}; the choices are {', '.join(CONDITIONINGS)}")
    return conditioning


def draw_given_start(
    process: NoiseProcess, x: Tensor, t: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """A state `u` and `-Γ∇log q(u|x, v_0) = L⁻ᵀη`, both `(B, K*C, *grid)`; `v_0` is drawn and kept in view.

    `u = Φ(0,t)(x, v_0) + (L ⊗ I) η` with `L Lᵀ = Σ(0,t)`.
    """

    def draw() -> Tensor:
        return process.draw(len(x), x.shape[1], generator=generator, dtype=x.dtype, device=x.device)

    phi, sigma = process.transition(torch.zeros_like(t), t)
    root = torch.linalg.cholesky(sigma)
    start = process.initial_state(x, draw())
    noise = draw()
    state = process.mix(phi, start) + process.mix(root, noise)
    return state, process.mix(torch.linalg.inv(root).mT, noise)


def given_data(process: NoiseProcess, noise: Tensor, t: Tensor) -> Tensor:
    """`-Γ∇log q(u|x) = L_t⁻ᵀη` `(B, K*C, *grid)` of the noise η of `perturb`."""
    eye = torch.eye(process.variables, dtype=torch.float64, device=t.device)
    inverse = torch.linalg.solve_triangular(process.root(t), eye, upper=False)
    return process.mix(inverse.mT, noise)


def energy(process: NoiseProcess, gamma_field: Tensor, t: Tensor) -> Tensor:
    """`‖Γ⁻¹ g‖²_{Q⊗Γ} = Σ_ij Q_ij g_iᵀΓ⁻¹g_j` per field `(B,)`, float64, of `g` `(B, K*C, *grid)`."""
    mixed = process.mix(process.noise_root(t).mT, gamma_field.double())
    apart = mixed.reshape(len(mixed), process.variables, -1, *mixed.shape[2:])
    return (apart * process.covariance.solve(apart)).flatten(1).sum(1)


def trace_rate(process: NoiseProcess, t: Tensor, channels: int) -> Tensor:
    """`n tr(QΣ⁻¹)` `(*t)`, float64."""
    matrix = process.diffusion_matrix(t) @ process.precision(t)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return process.covariance.domain.size * channels * weighted_mean(trace, process.basis)


def divergence_rate(process: NoiseProcess, t: Tensor, channels: int) -> Tensor:
    """`n tr F` `(*t)`, the divergence of the drift, float64."""
    trace = process.drift_matrix(t).diagonal(dim1=-2, dim2=-1).sum(-1)
    return process.covariance.domain.size * channels * weighted_mean(trace, process.basis)


def denoising_integrand(process: NoiseProcess, u: Tensor, t: Tensor, mean: Tensor, pulled: Tensor) -> Tensor:
    """`½‖s - ∇log q‖²_{Q⊗Γ}` `(B,)`; `pulled` is `-Γ∇log q` of the law given the data, `mean` is D."""
    return 0.5 * energy(process, process.gamma_score(u, t, mean) + pulled, t)


def implicit_integrand(
    process: NoiseProcess,
    u: Tensor,
    t: Tensor,
    mean: Tensor,
    probe: Tensor,
    *,
    create_graph: bool,
) -> Tensor:
    """`½‖s‖²_{Q⊗Γ} + ∇·((Q⊗Γ)s) + ½ n tr(QΣ⁻¹)` `(B,)`, the divergence `∇·(w ⊗ D)` drawn, `εᵀ(∂D/∂u)(w ⊗ ε)`.

    Args:
        u: states that require a gradient, from which `mean` was computed.
        mean: D `(B, C, *grid)`. probe: independent signs, shape of `mean`.
        create_graph: whether the result is to be differentiated again.
    """
    pull = process.diffusion_matrix(t) @ process.precision(t) @ process.marginal(t)[0][..., None]
    gradient = state_gradient(mean, probe, u, create_graph=create_graph, retain_graph=True)
    divergence = (gradient * process.mix(pull, probe)).double().flatten(1).sum(1)
    channels = mean.shape[1]
    score = energy(process, process.gamma_score(u, t, mean), t)
    return 0.5 * score + divergence - 0.5 * trace_rate(process, t, channels)


def state_gradient(
    mean: Tensor, probe: Tensor, u: Tensor, *, create_graph: bool = False, retain_graph: bool = False
) -> Tensor:
    """``(∂D/∂u)ᵀ ε``, shape of `u`; raises `ValueError` where autograd finds no way from the state to D."""
    total = (mean * probe).sum()
    found = None
    if total.requires_grad:
        (found,) = torch.autograd.grad(
            total, u, create_graph=create_graph, retain_graph=retain_graph or create_graph, allow_unused=True
        )
    if found is None:
        raise ValueError(
            "the divergence needs the derivative of the posterior mean by the state, and autograd finds "
            "none: the denoiser ignores the state, or computes under no_grad; use form='denoising', or a "
            "differentiable denoiser"
        )
    return found


def mutual_information(process: NoiseProcess, t: Tensor, channels: int) -> Tensor:
    """Mutual information `(*t)` of the state and the auxiliary start given the data, nats per field.

    `½ n log det Σ_t / det Σ(0,t)`.
    """
    _, given = process.transition(torch.zeros_like(t), t)
    inside = torch.linalg.cholesky(given).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    total = process.root(t).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    size = process.covariance.domain.size * channels
    return size * weighted_mean(total - inside, process.basis)


def signs(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent ±1 of the shape, dtype and device of `like`."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return (2 * drawn - 1).to(like.dtype)
