r"""The time grid of least exact Wasserstein-2 error on Gaussian data, at a given number of steps.

The error of a linear solver on ``N(μ, C)`` is a differentiable function of its times (``transport``), which
are parametrised by the shares of an interval of log-SNR,

.. math:: \lambda_i = \lambda_- + (\lambda_+ - \lambda_-) \sum_{j \le i} p_j, \qquad
          p = \varepsilon/N + (1 - \varepsilon)\,\mathrm{softmax}(\theta),

strictly increasing for every θ. L-BFGS-B minimises ``log W₂²`` from the best of the named grids, with
gradients by differentiation through the solver itself; where the law has one set of coefficients, modes of
nearly equal ``c_k/γ_k`` are merged for the search. The grid that is returned is the better of the two by the
exact error of all modes. (Compare Sabour, Fidler, Kreis 2024, arXiv 2404.14507.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.processes import Law
from spatialdiff.processes.memory import Memory, law_state
from spatialdiff.sampling.grids import GRIDS, between, time_grid
from spatialdiff.sampling.modal import ModalProblem
from spatialdiff.sampling.transport import TransportProblem

#: modes kept in the search, and the share of the way that is spread evenly so that no step vanishes
GROUPS = 256
EVEN = 1e-3
#: log-SNR beyond the named grids that the search may use
MARGIN = 2.0
ITERATIONS = 60
#: relative decrease of log W₂² below which the search ends
SETTLED = 1e-6
#: an error below this share of the data is rounding: every grid is as good
EXACT = 1e-12


_kept: Memory[Tensor] = Memory()


def optimised_for(
    law: Law, model: GaussianModel, channels: int, solver: str, steps: int, options: Mapping[str, Any]
) -> Tensor:
    """``optimised_times`` for law and Gaussian model of a denoiser; searched once for the same values.

    Options that are no plain values (a fitted law, for one) are not compared: with those every call searches.
    """
    spectra = model.spectra()
    places = torch.linspace(law.start_time, law.end_time, 9, dtype=torch.float64, device=spectra[1].device)
    state = [*spectra[1:], *law_state(law, places)]
    if model.mean is not None:
        state.append(model.mean)
    plain = all(isinstance(value, (str, int, float, bool)) for value in options.values())
    key = (solver, steps, channels, type(spectra[0]), tuple(sorted(options.items())) if plain else None)
    found = _kept.recall(law, key, state) if plain else None
    if found is None:
        problem = TransportProblem(law, spectra, model.mean, channels)
        found = optimised_times(problem, solver, steps, options)
        if plain:
            _kept.keep(law, key, state, found)
    return found.clone()


def optimised_times(
    problem: TransportProblem, solver: str, steps: int, options: Mapping[str, Any] | None = None
) -> Tensor:
    """Times ``(steps + 1,)`` of least exact W₂ error of ``solver`` with its ``options``; float64.

    At least as good as every named grid. Raises ``ValueError`` for a solver that is not linear, and for
    ``steps < 1``.
    """
    given = dict(options or {})
    own = problem.options(given)
    start = problem.modal.solver(solver, own).start_time
    law, model = problem.law, problem.field.gaussian

    def exact(times: Tensor) -> float:
        with torch.no_grad():
            total = problem.distance(problem.modal.output(solver, times, own))[0]
            value = float(total + problem.mean_square(solver, times, given))
        return value if math.isfinite(value) else math.inf

    named = [time_grid(law, steps, name, start=start, model=model) for name in (*GRIDS, "fitted")]
    problem.modal.check_linear(solver, named[0], own)
    scored = sorted(((exact(times), i) for i, times in enumerate(named)), key=lambda pair: pair[0])
    best, times = scored[0][0], named[scored[0][1]]
    if steps == 1 or best <= EXACT**2 * float(problem.trace):
        return times
    found = search(problem, solver, given, own, start, times, named)
    return found if exact(found) < best else times


def search(
    problem: TransportProblem,
    solver: str,
    options: Mapping[str, Any],
    own: Mapping[str, Any],
    start: float,
    times: Tensor,
    named: list[Tensor],
) -> Tensor:
    """A local minimum of the error, from ``times``."""
    import numpy as np
    from scipy.optimize import minimize

    law = problem.law
    levels = torch.stack([law.log_snr(grid[1:-1]) for grid in named])
    first, last = (float(law.log_snr(time)) for time in (start, law.end_time))
    # between the named grids and a margin, and inside of what the law reaches
    low = max(float(levels.min()) - MARGIN, first)
    high = min(float(levels.max()) + MARGIN, last)
    # a solver that believes another law than the data's has two numbers for each mode
    whole = not problem.basis.orthonormal or own.get("data") is not None
    modal = problem.modal if whole else problem.modal.merged(GROUPS)
    units = modal.draws(solver, times, own)
    in_modes = problem.mean_in_modes(options)
    steps = len(times) - 1

    def unfold(theta: Tensor) -> Tensor:
        shares = EVEN / steps + (1.0 - EVEN) * torch.softmax(theta, 0)
        levels = low + (high - low) * shares.cumsum(0)[:-1]
        times = between(law, start, levels.detach())
        return torch.cat([times[:1], attached(law, times[1:-1], levels), times[-1:]])

    def objective(flat: Any) -> tuple[float, Any]:
        theta = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            inside = unfold(theta)
            total = centred(problem, modal, modal.output(solver, inside, own, units))
            if in_modes:
                total = total + modal.mean_square(solver, inside, own)
            else:
                total = total + problem.mean_square(solver, inside, options)
            value = (total + 1e-300).log()
            (slope,) = torch.autograd.grad(value, theta)
        if not (bool(torch.isfinite(value)) and bool(torch.isfinite(slope).all())):
            return 1e3, np.zeros_like(flat)
        return value.item(), slope.numpy()

    inner = law.log_snr(times[1:-1])
    edges = torch.cat([inner.new_tensor([low]), inner, inner.new_tensor([high])])
    shares = ((edges.diff() / (high - low) - EVEN / steps) / (1.0 - EVEN)).clamp(min=1e-6)
    result = minimize(
        objective,
        shares.log().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS, "ftol": SETTLED},
    )
    with torch.no_grad():
        return unfold(torch.as_tensor(result.x, dtype=torch.float64))


def attached(law: Law, times: Tensor, levels: Tensor) -> Tensor:
    """``times`` with their derivatives in the levels of log-SNR, ``dt/dλ = 1/λ'(t)``."""
    with torch.no_grad():
        slope = law.log_snr_rate(times)
    return times + (levels - levels.detach()) / slope


def centred(problem: TransportProblem, modal: ModalProblem, output: Tensor) -> Tensor:
    """Squared W₂ of the centred laws, on all modes or on merged ones."""
    if modal is problem.modal:
        return problem.distance(output)[0]
    return problem.copies * modal.parts(output).sum()


__all__ = ["optimised_for", "optimised_times"]
