"""Time from data to estimates, beside GPBoost, scikit-learn and gpytorch.

Scattered sites in the unit square, one field with Matérn 3/2 covariance and a nugget. Every program gets the
same data and goes to its own optimum by its own default search; all optima are then judged by one likelihood,
ours, so that a cheaper stop shows. scikit-learn and gpytorch (dense Cholesky, L-BFGS) get zero-mean data and
fit no mean, and neither does ours beside them. Programs take turns where they are run more than once.
Processor seconds of all threads stand beside the time on the clock: on a machine that does other things too,
they tell more, except that threads of OpenMP which wait in a loop count as busy.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.fitting.likelihoods.base import Likelihood
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.vecchia import VecchiaLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Matern, Nugget

LENGTHSCALE, VARIANCE, NUGGET = 0.05, 1.0, 0.1
# lengthscale, variance, nugget
Estimate = tuple[float, float, float]


def kernel(lengthscale: float, variance: float, nugget: float) -> torch.nn.Module:
    return Matern(nu=1.5, lengthscale=lengthscale, variance=variance) + Nugget(nugget)


def simulate(n: int, mean: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    sites = torch.rand(n, 2, generator=g, dtype=torch.float64)
    gamma = sd.VecchiaCovariance(kernel(LENGTHSCALE, VARIANCE, NUGGET), sd.Points(sites), neighbors=60)
    with torch.no_grad():
        return sites, gamma.double().sample(generator=g) + mean


def ours(sites: Tensor, y: Tensor, method: str, mean: str | None) -> Estimate:
    # a start that is as far off as the others'
    found = sd.fit(kernel(0.3, 1.0, 0.5), y, sd.Points(sites), method=method, mean=mean)
    values = found.parameters
    return values["lengthscale"], values["variance"], values["nugget"]


def with_gpboost(sites: Tensor, y: Tensor) -> Estimate:
    import gpboost
    import numpy as np

    model = gpboost.GPModel(
        gp_coords=sites.numpy(),
        cov_function="matern",
        cov_fct_shape=1.5,
        gp_approx="vecchia",
        num_neighbors=30,
        likelihood="gaussian",
    )
    model.fit(y=y.numpy(), X=np.ones((len(y), 1)))
    error, variance, lengthscale = np.asarray(model.get_cov_pars(std_err=False)).reshape(-1)[:3]
    return float(lengthscale), float(variance), float(error)


def with_sklearn(sites: Tensor, y: Tensor) -> Estimate:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel
    from sklearn.gaussian_process.kernels import Matern as TheirMatern

    start = ConstantKernel(1.0) * TheirMatern(0.3, nu=1.5) + WhiteKernel(0.5)
    model = GaussianProcessRegressor(start, alpha=0.0).fit(sites.numpy(), y.numpy())
    parts = model.kernel_.get_params()
    return parts["k1__k2__length_scale"], parts["k1__k1__constant_value"], parts["k2__noise_level"]


def with_gpytorch(sites: Tensor, y: Tensor) -> Estimate:
    import gpytorch

    class Model(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
            super().__init__(sites, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = Model(likelihood).double()
    model.covar_module.outputscale, model.covar_module.base_kernel.lengthscale = 1.0, 0.3
    likelihood.noise = 0.5
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    search = torch.optim.LBFGS(
        model.parameters(),
        max_iter=100,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    model.train()

    def closure() -> Tensor:
        search.zero_grad()
        loss: Tensor = -objective(model(sites), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    # the exact log-determinant and solves, in place of their stochastic estimates
    with gpytorch.settings.fast_computations(False, False, False):
        search.step(closure)
    scale = model.covar_module
    found = (scale.base_kernel.lengthscale, scale.outputscale, likelihood.noise)
    lengthscale, variance, noise = (float(value.detach()) for value in found)
    return lengthscale, variance, noise


def judged(build: Callable[[KernelParameters], Likelihood], estimate: Estimate) -> float:
    model = KernelParameters(kernel(*estimate))
    with torch.no_grad():
        return float(build(model)(model.start()))


def table(
    title: str, tasks: dict[str, Callable[[], Estimate]], judge: Callable[[Estimate], float], repeats: int
) -> None:
    # on the clock, and of the processors
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    found: dict[str, Estimate] = {}
    loads = [os.getloadavg()[0]]
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter(), time.process_time()
            found[name] = task()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            loads.append(os.getloadavg()[0])
    medians = {name: [statistics.median(side) for side in zip(*t, strict=True)] for name, t in times.items()}
    first = medians["spatialdiff"]
    print(f"\n{title}, {repeats} runs, load {min(loads):.1f} to {max(loads):.1f}")
    heads = "".join(f"{head:>{w}s}" for head, w in (("lengthscale", 13), ("variance", 10), ("nugget", 9)))
    print(f"{'':14s}{'time':>10s}{'to ours':>9s}{'CPU':>10s}{'to ours':>9s}{'log-likelihood':>17s}{heads}")
    for name, (clock, busy) in medians.items():
        seconds = f"{clock:8.2f} s{clock / first[0]:8.2f}x{busy:8.2f} s{busy / first[1]:8.2f}x"
        numbers = "".join(f"{v:{w}.5g}" for v, w in zip(found[name], (13, 10, 9), strict=True))
        print(f"{name:14s}{seconds}{judge(found[name]):17.3f}{numbers}", flush=True)


def approximate(n: int, repeats: int) -> None:
    sites, y = simulate(n, 3.0)
    data = observe(y, sd.Points(sites), "constant")
    tasks: dict[str, Callable[[], Estimate]] = {"spatialdiff": lambda: ours(sites, y, "vecchia", "constant")}
    if importlib.util.find_spec("gpboost") is not None:
        tasks["GPBoost"] = lambda: with_gpboost(sites, y)
    title = f"Vecchia, {n} sites, 30 neighbours, constant mean"
    table(title, tasks, lambda e: judged(lambda m: VecchiaLikelihood(m, data, neighbors=30), e), repeats)


def exact(n: int, repeats: int) -> None:
    sites, y = simulate(n, 0.0)
    data = observe(y, sd.Points(sites), None)
    tasks: dict[str, Callable[[], Estimate]] = {
        "spatialdiff": lambda: ours(sites, y, "exact", None),
        "gpytorch": lambda: with_gpytorch(sites, y),
    }
    if importlib.util.find_spec("sklearn") is not None:
        tasks["scikit-learn"] = lambda: with_sklearn(sites, y)
    title = f"exact, {n} sites, zero mean"
    table(title, tasks, lambda e: judged(lambda m: DenseLikelihood(m, data), e), repeats)


def million(n: int) -> None:
    import resource

    sites = torch.rand(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [(time.perf_counter(), time.process_time())]
    model = KernelParameters(kernel(LENGTHSCALE, VARIANCE, NUGGET))
    likelihood = VecchiaLikelihood(model, observe(y, sd.Points(sites)), neighbors=30)
    times.append((time.perf_counter(), time.process_time()))
    point = model.start().requires_grad_()
    torch.autograd.grad(likelihood(point), point)
    likelihood.information(point)
    times.append((time.perf_counter(), time.process_time()))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    made, seconds = (
        f"{end[0] - begin[0]:.1f} s (CPU {end[1] - begin[1]:.1f} s)"
        for begin, end in itertools.pairwise(times)
    )
    print(
        f"\n{n} sites: order and neighbours {made}; value, score and information {seconds}; "
        f"{more:.0f} MB more memory at the peak; load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few sites")
    parser.add_argument("--threads", type=int, default=2, help="for torch; set OMP_NUM_THREADS to the same")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=["exact", "vecchia", "million"], help="one of the comparisons")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # compiled loops are compiled once
    warm_sites, warm = simulate(2000, 0.0)
    ours(warm_sites, warm, "vecchia", "constant")
    if options.only in (None, "exact"):
        exact(400 if options.quick else 5000, options.repeats)
    if options.only in (None, "vecchia"):
        approximate(3000 if options.quick else 100_000, options.repeats)
    if options.only in (None, "million"):
        million(20_000 if options.quick else 1_000_000)


if __name__ == "__main__":
    main()
