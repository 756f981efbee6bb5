"""Writes agreement.json: log-likelihoods and their gradients by gpytorch and by scikit-learn.

The data are log zinc (meuse, 155 sites, m), cobalt of the prediction set (jura, 259 sites, km) and the
square root of rainfall at the 100 gauges (sic97, km), each less its mean, with zero mean assumed.
``gradient`` is the derivative in the logarithms of variance, length scale and nugget. gpytorch:
`ExactMarginalLogLikelihood` with Cholesky factorisation (its value is per datum, here multiplied by their
number); scikit-learn:
`GaussianProcessRegressor.log_marginal_likelihood(theta, eval_gradient=True)`. Both take every kernel's length
as here (Matérn with ``√(2ν) r/ℓ``).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import gpytorch
import sklearn
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from spatialdiff import data

SETS = {
    "meuse": (data.meuse().points.sites(), data.meuse()["zinc"].log()),
    "jura": (data.jura("prediction").points.sites(), data.jura("prediction")["Co"]),
    "sic97": (data.sic97("prediction").points.sites(), data.sic97("prediction")["rainfall"].sqrt()),
}
# smoothness, variance, length scale, nugget: as fitted, shorter and smoother, longer
CASES = {
    "meuse": [(0.5, 0.6, 300.0, 0.05), (1.5, 0.5, 150.0, 0.08), (2.5, 1.2, 700.0, 0.1)],
    "jura": [(0.5, 10.0, 0.35, 0.8), (1.5, 8.0, 0.2, 1.5), (2.5, 14.0, 0.6, 2.0)],
    "sic97": [(0.5, 21.0, 42.0, 0.5), (1.5, 17.0, 18.0, 0.1), (2.5, 25.0, 40.0, 1.0)],
}


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, nu):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=nu))

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def by_gpytorch(x, y, nu, variance, lengthscale, nugget):
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        noise_constraint=gpytorch.constraints.GreaterThan(1e-12)
    )
    model = Model(x, y, likelihood, nu).double()
    # tensors: gpytorch rounds plain numbers to float32
    model.covar_module.outputscale = torch.tensor(variance, dtype=torch.float64)
    model.covar_module.base_kernel.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
    likelihood.noise = torch.tensor(nugget, dtype=torch.float64)
    model.train(), likelihood.train()
    dense = gpytorch.settings.fast_computations(False, False, False)
    with dense, gpytorch.settings.max_cholesky_size(10_000):
        value = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(x), y) * len(y)
    value.backward()
    gradient = []
    for module, name in (
        (model.covar_module, "outputscale"),
        (model.covar_module.base_kernel, "lengthscale"),
        (likelihood.noise_covar, "noise"),
    ):
        raw = getattr(module, f"raw_{name}")
        constraint = getattr(module, f"raw_{name}_constraint")
        natural = constraint.transform(raw)
        (slope,) = torch.autograd.grad(natural.sum(), raw)
        gradient.append((raw.grad.sum() / slope.sum() * natural.sum()).item())
    return value.item(), gradient


def by_scikit_learn(x, y, nu, variance, lengthscale, nugget):
    kernel = ConstantKernel(variance) * Matern(lengthscale, (1e-9, 1e9), nu=nu) + WhiteKernel(nugget)
    process = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(x.numpy(), y.numpy())
    theta = [math.log(v) for v in (variance, lengthscale, nugget)]
    value, gradient = process.log_marginal_likelihood(theta, eval_gradient=True, clone_kernel=False)
    return float(value), gradient.tolist()


def main():
    entries = []
    for name, (x, z) in SETS.items():
        y = z - z.mean()
        for nu, *values in CASES[name]:
            entry = {
                "data": name,
                "nu": nu,
                **dict(zip(("variance", "lengthscale", "nugget"), values, strict=True)),
            }
            for peer, function in (("gpytorch", by_gpytorch), ("scikit_learn", by_scikit_learn)):
                value, gradient = function(x, y, nu, *values)
                entry[peer] = {"log_likelihood": value, "gradient": gradient}
            entries.append(entry)
    source = (
        f"Written by make_agreement.py with gpytorch {gpytorch.__version__}, "
        f"scikit-learn {sklearn.__version__}"
    )
    text = json.dumps({"source": source, "cases": entries}, indent=1)
    (Path(__file__).parent / "agreement.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
