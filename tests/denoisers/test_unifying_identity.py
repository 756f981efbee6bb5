"""A bridge mixture over (noised, clean) data is the time reversal of the noising, on real terrain."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential
from spatialdiff.processes import time_reversal


@pytest.fixture(scope="module")
def patches():
    """Standardised 8×8 patches of the elevation model that ships with matplotlib, `(N, 1, 8, 8)`."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz"
    elevation = torch.from_numpy(np.load(path)["elevation"].astype(float))
    cut = elevation[::4, ::4].unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 1, 8, 8)
    return (cut - cut.mean()) / cut.std()


@pytest.fixture(scope="module", params=["torus", "dense"])
def gamma(request):
    grid = sd.Grid((8, 8), periodic=request.param == "torus")
    return sd.covariance(Exponential(lengthscale=2.0), grid, method=request.param).double()


PROCESSES = {
    "VP": sd.VP,
    "VE": lambda g: sd.VE(g, sigma_min=0.05, sigma_max=20.0),
    "OrnsteinUhlenbeck": lambda g: sd.OrnsteinUhlenbeck(g, rate=0.7, horizon=3.0),
    "BrownianMotion": sd.BrownianMotion,
}


@pytest.mark.parametrize("make", PROCESSES.values(), ids=PROCESSES.keys())
def test_drift_of_the_mixture_is_the_reverse_drift(patches, gamma, make):
    process = make(gamma)
    bridge, coupling = time_reversal(process)
    reversal = sd.oracles.EmpiricalDenoiser(process, patches)
    mixture = sd.oracles.EmpiricalDenoiser(bridge, patches, coupling=coupling)
    generator = torch.Generator().manual_seed(0)
    for share in (0.02, 0.1, 0.3, 0.7, 0.95):
        t = torch.tensor(share * process.horizon, dtype=torch.float64)
        u, _ = process.perturb(patches[:6], t, generator=generator)
        reverse = process.reverse_drift(u, reversal(u, t), t)
        bridged = mixture.law.reverse_drift(u, mixture(u, process.horizon - t), process.horizon - t)
        scale = reverse.abs().max()
        assert (bridged - reverse).abs().max() < 1e-9 * scale
        # and both are -f u + g² Γ∇log q_t, with the score by differentiating the mixture's log-density
        v = u.clone().requires_grad_()
        alpha, sigma = process.alpha(t), process.sigma(t)
        log_q = torch.logsumexp(gamma.log_prob((v - alpha * patches[:, None]) / sigma).squeeze(-1), dim=0)
        (score,) = torch.autograd.grad(log_q.sum(), v)
        direct = process.diffusion(t) ** 2 * gamma.matmul(score) - process.drift(u, t)
        assert (reverse - direct).abs().max() < 1e-8 * scale


def test_paths_coincide(patches, gamma):
    process = sd.VP(gamma)
    bridge, coupling = time_reversal(process)
    times = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)
    reversal = sd.oracles.EmpiricalDenoiser(process, patches)
    mixture = sd.oracles.EmpiricalDenoiser(bridge, patches, coupling=coupling)
    for solver in ("ancestral", "euler_maruyama", "ddim", "heun"):
        one, two = (
            sd.sample(
                denoiser,
                4,
                solver=solver,
                grid=grid,
                return_path=True,
                generator=torch.Generator().manual_seed(3),
            )
            for denoiser, grid in ((reversal, times), (mixture, 1.0 - times))
        )
        assert (one - two).abs().max() < 1e-8 * one.abs().max()


def test_another_coupling_is_another_drift(patches, gamma):
    """The identity belongs to the coupling (noised, clean): a fixed start gives a different diffusion."""
    process = sd.BrownianMotion(gamma)
    bridge, _ = time_reversal(process)
    reversal = sd.oracles.EmpiricalDenoiser(process, patches)
    other = sd.oracles.EmpiricalDenoiser(bridge, patches, coupling="fixed")
    t = torch.tensor(0.5, dtype=torch.float64)
    u, _ = process.perturb(patches[:6], t, generator=torch.Generator().manual_seed(0))
    reverse = process.reverse_drift(u, reversal(u, t), t)
    difference = other.law.reverse_drift(u, other(u, 0.5), 0.5) - reverse
    assert difference.abs().max() > 0.1 * reverse.abs().max()
