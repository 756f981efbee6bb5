"""The trainer with the library's own objectives, on an 8×8 torus."""

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Matern
from spatialdiff.networks import UNet
from spatialdiff.training import CheckpointError, Trainer

GRID = sd.Grid((8, 8), periodic=True)


def objective(kind, lengthscale=2.0):
    torch.manual_seed(0)
    gamma = sd.covariance(Matern(nu=1.5, lengthscale=lengthscale), GRID)
    data = sd.covariance(Matern(nu=0.5, lengthscale=1.5), GRID)
    network = UNet(1, GRID, width=8, depth=1)
    options = {"preconditioning": "wiener", "data": (torch.zeros(1, 8, 8), data)}
    if kind == "denoising":
        return sd.Denoising(sd.Denoiser(network, sd.VP(gamma), **options))
    return sd.BridgeMixture(sd.Denoiser(network, sd.BrownianBridge(gamma), coupling="independent", **options))


def fields():
    """Fields of one sign each, far from Gaussian, with the variance of the fitted law."""
    generator = torch.Generator().manual_seed(3)
    sign = torch.randn(64, 1, 1, 1, generator=generator).sign()
    return sign * (0.9 + 0.1 * torch.randn(64, 1, 8, 8, generator=generator))


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.ema.module.parameters()])


@pytest.mark.parametrize("kind", ["denoising", "bridge mixture"])
def test_trains_resumes_exactly_and_samples(tmp_path, kind):
    options = {"lr": 3e-3, "checkpoint_every": 20, "tensorboard": False, "progress": False}
    x = fields()
    whole = Trainer(objective(kind), **options).fit(x, steps=80)

    interrupted = objective(kind)
    calls = []
    interrupted.register_forward_pre_hook(lambda *_: calls.append(None))

    def stop(*_):
        if len(calls) == 50:
            raise KeyboardInterrupt

    interrupted.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        Trainer(interrupted, run_dir=tmp_path, **options).fit(x, steps=80)
    resumed = Trainer(objective(kind), run_dir=tmp_path, **options).fit(x, steps=80)
    assert torch.equal(weights(resumed), weights(whole))

    # the network has learnt what the Gaussian law cannot know: at the start it is the Gaussian posterior mean
    def error(denoising):
        with torch.no_grad():
            draws = [denoising(x, generator=torch.Generator().manual_seed(s)).item() for s in range(20)]
        return sum(draws) / len(draws)

    assert error(resumed.objective) < 0.8 * error(objective(kind))
    samples = sd.sample(resumed.ema_denoiser(), 4, steps=4, generator=torch.Generator().manual_seed(0))
    assert samples.shape == (4, 1, 8, 8)
    assert samples.isfinite().all()
    assert not samples.requires_grad

    with pytest.raises(CheckpointError, match=r"covariance\.kernel.*raw_lengthscale was"):
        Trainer(objective(kind, lengthscale=2.5), run_dir=tmp_path, **options).fit(x, steps=80)
