"""From coloured noise to fields: one loop for every solver, every process and every bridge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.covariance.basis import ChannelBasis
from spatialdiff.covariance.checks import warn
from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.sampling.adaptive import Adaptive
from spatialdiff.sampling.ancestral import Ancestral
from spatialdiff.sampling.base import Noise, Solver, White
from spatialdiff.sampling.euler import Euler
from spatialdiff.sampling.euler_maruyama import EulerMaruyama
from spatialdiff.sampling.exponential import DDIM, Exponential
from spatialdiff.sampling.gaussian import Gaussian
from spatialdiff.sampling.gaussian_sde import GaussianSDE
from spatialdiff.sampling.grids import time_grid
from spatialdiff.sampling.heun import Heun
from spatialdiff.sampling.predictor_corrector import PredictorCorrector
from spatialdiff.sampling.splitting import Splitting

#: signal at the start, relative to the noise of a mode, beyond which a start of noise alone is warned of
SIGNAL = 0.1
SOLVERS: dict[str, type[Solver]] = {
    "adaptive": Adaptive,
    "ancestral": Ancestral,
    "bridge": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "euler_maruyama": EulerMaruyama,
    "exponential": Exponential,
    "gaussian": Gaussian,
    "gaussian_sde": GaussianSDE,
    "heun": Heun,
    "predictor_corrector": PredictorCorrector,
    "splitting": Splitting,
}


@torch.no_grad()
def sample(
    denoiser: PosteriorMean,
    n: int,
    *,
    steps: int = 32,
    solver: str = "ancestral",
    grid: str | Tensor = "log_snr",
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    noise: White | None = None,
    condition: Mapping[str, Any] | None = None,
    return_path: bool = False,
    progress: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    **options: Any,
) -> Tensor:
    r"""Draw `n` fields, shape `(n, C, *grid)`, by `steps` steps from the law's start to the data.

    Args:
        denoiser: the posterior mean: a `Denoiser`, or one of `sd.oracles`.
        n: number of fields.
        steps: number of steps; each calls the network once (`"heun"`, `"splitting"` of order 2 and
            `"predictor_corrector"`: more often, but for the last; `"adaptive"`: as often as it needs).
        solver: of the SDE `"ancestral"` (alias `"bridge"`: the exact bridge step), `"euler_maruyama"`,
            `"splitting"` (option `order=1|2`; processes with a stationary law), `"predictor_corrector"`
            (`predictor=`, `correctors=`, `strength=`, `largest=`), `"gaussian_sde"` (`order=1|2`, `data=`);
            of the probability flow `"ddim"`, `"exponential"` (`order=1|2`), `"euler"`, `"heun"`, `"adaptive"`
            (`rtol=`, `atol=`, `method=`, `report=`), `"gaussian"` (`order=1|2`,
            `residual="endpoint"|"plain"`, `data=`).
        grid: `"log_snr"`, `"uniform"`, `"quadratic"`, `"edm"` (see `time_grid`), or the times themselves;
            `"fitted"` is `"log_snr"` over the noise levels at which the fitted data emerge (`noise_range` of
            the Gaussian model), in place of `sigma_min` and `sigma_max`; `"optimised"` the times of least
            exact Wasserstein-2 error of the solver on the fitted Gaussian, searched for once.
        generator: source of every random number.
        start: the initial states `(n, K*C, *grid)` instead of drawn ones; needed by a bridge with coupling
            `"paired"`, there also the data variable `(n, C, *grid)` alone.
        noise: white draws in place of random ones: a function of the shape, or tensors in the order of their
            use.
        condition: keyword arguments for the network.
        return_path: return all states, `(steps + 1, n, K*C, *grid)`, the initial one first.
        progress: show a progress bar.
        sigma_min, sigma_max: of the time grid.
        **options: of the solver.

    Every draw is coloured by Γ, the initial state included. What is returned is the data variable of the
    state. The last step leads to the posterior mean, except for the Gaussian solvers, whose last step is
    exact like the others and whose initial state is drawn from the fitted marginal
    `N(φ μ + o, φφᵀ ⊗ C + Σ ⊗ Γ)` instead of `N(o, Σ ⊗ Γ)`; the others warn (`SpatialWarning`) where, by the
    fitted law, the data still matter at the start.

    Raises:
        ValueError: unknown solver, grid or shape; a Gaussian solver without a fitted Gaussian.
        RuntimeError: a flow solver for a bridge that has no flow; a bridge without a coupling.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; the solvers are {', '.join(sorted(SOLVERS))}")
    if n < 1:
        raise ValueError(f"n={n}; needed at least one field")
    given = dict(condition or {})
    needs_start = not denoiser.law.closed_form
    if needs_start and start is None:
        raise ValueError(
            "a bridge with coupling 'paired' starts from given fields: pass start=, shape (n, C, *grid)"
        )
    if start is not None:
        check_start(start, n, denoiser)
        if getattr(denoiser, "condition_on_start", False):
            given["start"] = start
    draws = Noise(denoiser.law, n, denoiser.channels, generator=generator, white=noise)
    method = SOLVERS[solver](denoiser, draws, given, **options)
    model = getattr(method, "model", None) or getattr(denoiser, "gaussian", None)
    times = time_grid(
        method.law,
        steps,
        grid,
        start=method.start_time,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        model=model,
        solver=solver,
        options=options,
        channels=denoiser.channels,
    ).to(denoiser.covariance.device)
    if start is None and isinstance(model, GaussianModel) and type(method).start is Solver.start:
        warn_of_signal(method, model)
    with evaluation_mode(denoiser):
        u = method.start() if start is None else initial_state(start, method)
        states = ticks(method.path(times, u), len(times) - 1, progress)
        if return_path:
            return torch.stack([u, *states])
        for state in states:
            u = state
    return u[:, : denoiser.channels]


def warn_of_signal(method: Solver, model: GaussianModel) -> None:
    """Warn where the start, drawn from noise alone, should hold much of the data.

    A mode of the true start has the variance of the noise times ``1 + ρI``, ``ρ = c/γ``.
    """
    law = method.law
    if not model.fast:
        return  # a factorisation, or Lanczos steps, for nothing but a warning
    basis, gamma, data = model.spectra()
    if law.basis is not None and law.basis != (basis.spatial if isinstance(basis, ChannelBasis) else basis):
        return  # the fitted law has other modes: nothing is known mode by mode
    begin = law.times(method.start_time)
    # a fixed start holds nothing of the data, and no noise either
    level = torch.where(law.alpha(begin) == 0.0, 0.0, law.information(begin))
    ratio = (data / gamma).detach()
    if law.basis is None:
        excess = float(level * ratio.max())
    else:
        excess = float((ratio * model.per_mode(level, basis, law)).max())
    if excess > SIGNAL:
        warn(
            f"the start of {type(law).__name__} still holds the data: of the fitted law up to {excess:.2g} "
            "times the variance of the noise in a mode. It is drawn from the noise alone, and samples come "
            "out with too little variance there however many steps are taken. Use solver='gaussian' or "
            "'gaussian_sde', whose start is the fitted marginal, pass start=, or let the process run longer"
        )


def initial_state(start: Tensor, method: Solver) -> Tensor:
    """The given states; where they are only the data variable of a bridge's start, the others drawn."""
    law, channels = method.law, method.noise.channels
    state = start.to(law.covariance.dtype)
    if start.shape[1] == law.variables * channels:
        return state
    return law.start(len(start), channels, initial=state, white=method.noise.draw_white())


def check_start(start: Tensor, n: int, denoiser: PosteriorMean) -> None:
    law, grid = denoiser.law, denoiser.covariance.domain.shape
    needed = (n, law.variables * denoiser.channels, *grid)
    # a bridge between pairs draws the auxiliary variables itself
    allowed = [needed] if law.closed_form else [needed, (n, denoiser.channels, *grid)]
    if tuple(start.shape) not in allowed:
        raise ValueError(
            f"start has shape {tuple(start.shape)}; needed {needed}: n states on the denoiser's grid"
        )
    if not bool(torch.isfinite(start).all()):
        raise ValueError(f"start holds {int((~torch.isfinite(start)).sum())} values that are not finite")


def ticks(states: Iterator[Tensor], steps: int, progress: bool) -> Iterator[Tensor]:
    if not progress:
        yield from states
        return
    from tqdm.auto import tqdm

    yield from tqdm(states, total=steps, desc="sampling", leave=False)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode restored after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
