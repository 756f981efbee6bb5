"""A small denoising problem on an 8×8 grid, with everything random that a training run can have."""

import torch
from torch import nn

from spatialdiff.networks import UNet


class ToyDenoiser(nn.Module):
    def __init__(self, network, gain=1.0):
        super().__init__()
        self.network = network
        self.gain = gain
        self.register_buffer("mean", torch.full((8, 8), 0.5))
        self.scale = nn.Parameter(torch.tensor(2.0))


class ToyObjective(nn.Module):
    def __init__(self, denoiser, hook=None):
        super().__init__()
        self.denoiser = denoiser
        self.dropout = nn.Dropout(0.2)
        self._hook = hook
        self._calls = 0

    def forward(self, x, weight=None, *, generator=None):
        self._calls += 1
        if self._hook is not None:
            self._hook(self._calls)
        t = torch.rand(len(x), generator=generator)
        noise = torch.randn(x.shape, generator=generator).to(x)
        state = self.dropout(x + t[:, None, None, None].to(x) * noise)  # draws from the global generator
        error = (self.denoiser.gain * self.denoiser.network(state, t) - x + self.denoiser.mean.to(x)).square()
        return (
            error.mean() if weight is None else (weight[:, None, None, None] * error).mean()
        ) * self.denoiser.scale


def objective(hook=None, gain=1.0, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return ToyObjective(ToyDenoiser(UNet(1, 2, width=8, depth=1, attention=False).to(dtype), gain), hook)


def fields(n=40, dtype=torch.float32):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(5)).to(dtype)


def weights(trainer):
    parts = [*trainer.network.parameters(), *trainer.ema.module.parameters()]
    return torch.cat([p.detach().flatten() for p in parts])
