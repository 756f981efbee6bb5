"""The exact law of a sampler's output where the posterior mean is affine: its response to one unit draw at a
time.

With a Gaussian oracle every solver is affine in its initial state and its white draws. Unit draws, one per
field of a batch, give
the columns of the linear map, and so mean and covariance of the state after every step, with no Monte-Carlo
error at all.
"""

import torch

import spatialdiff as sd

FLOWS = ("adaptive", "ddim", "euler", "exponential", "gaussian", "heun")


def draws_per_step(solver, options):
    if solver == "predictor_corrector":
        return 1 + options.get("correctors", 1)
    return 2 if solver == "splitting" else 1


def exact_path_law(denoiser, root, *, times, solver, mean=None, **options):
    """Means `(T, K*n)` and covariances `(T, K*n, K*n)` of the states at `times`, from a start `N(mean, root
    rootᵀ)`.

    One channel; Γ with a square factor.
    """
    law = denoiser.law
    shape = tuple(denoiser.covariance.domain.shape)
    size = root.shape[0]
    draws = 0 if solver in FLOWS else draws_per_step(solver, options) * (len(times) - 1)
    fields = size * (1 + draws) + 1  # columns of the start, of each draw, and none
    start = torch.zeros(fields, size, dtype=torch.float64)
    start[:size] = root.T
    if mean is not None:
        start += mean.flatten()
    used = iter(range(draws))

    def impulses(needed):
        white = torch.zeros(fields, size, dtype=torch.float64)
        step = 1 + next(used)
        white[step * size : (step + 1) * size] = torch.eye(size, dtype=torch.float64)
        return white.reshape(needed)

    path = sd.sample(
        denoiser,
        fields,
        solver=solver,
        grid=times,
        start=start.reshape(fields, law.variables, *shape),
        noise=impulses,
        return_path=True,
        **options,
    ).flatten(2)
    means = path[:, -1]
    columns = path[:, :-1] - means[:, None]
    return means, columns.mT @ columns


def exact_final_power(denoiser, start, *, times, solver):
    """Variance of every Fourier mode of the output, on a torus, from a start with variances `start`.

    There the linear map commutes with shifts, so one unit draw, at one site, tells all of its columns.
    """
    shape = tuple(denoiser.covariance.domain.shape)
    basis = denoiser.gaussian.data_covariance.basis
    draws = 0 if solver in FLOWS else draws_per_step(solver, {}) * (len(times) - 1)
    unit = torch.zeros(shape, dtype=torch.float64)
    unit[(0,) * len(shape)] = 1.0
    initial = torch.zeros(draws + 2, 1, *shape, dtype=torch.float64)
    initial[0] = basis.multiply(unit, start.sqrt())
    used = iter(range(draws))

    def impulse(needed):
        white = torch.zeros(needed, dtype=torch.float64)
        white[1 + next(used)] = unit
        return white

    fields = sd.sample(denoiser, draws + 2, solver=solver, grid=times, start=initial, noise=impulse)
    responses = basis.analyze(fields[:-1] - fields[-1:]) / basis.analyze(unit)
    return responses.abs().square().sum((0, 1))


def state_law(oracle, t):
    """Mean `(K*n,)` and covariance `(K*n, K*n)` of the state at `t`, from impulses through the law's own maps
    and the dense covariances.
    """
    law, model = oracle.law, oracle.gaussian
    shape = tuple(law.covariance.domain.shape)
    size = law.covariance.domain.size
    mu = torch.zeros(size, dtype=torch.float64)
    if model.mean is not None:
        mu = model.mean.double().expand(shape).flatten()
    c, g = model.data_covariance.to_dense(), law.covariance.to_dense()
    phi, sigma = law.marginal(t)

    def states(fields, matrix, variables):
        fields = fields.reshape(len(fields), variables, *shape)
        return law.mix(matrix, fields).flatten(1)

    offset = law.offset(t).expand(1, law.variables, *shape).flatten()
    mean = states(mu[None], phi[..., None], 1)[0] + offset
    signal = states(square_root(c).detach(), phi[..., None], 1)
    one = square_root(g).detach()
    noise = states(torch.block_diag(*[one] * law.variables), square_root(sigma), law.variables)
    return mean, signal.T @ signal + noise.T @ noise


def square_root(matrix):
    """A symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()[..., None, :]) @ vectors.mT
