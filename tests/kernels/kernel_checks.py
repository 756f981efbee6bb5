"""Checks that every kernel takes: gradients, positive definiteness, batches."""

from __future__ import annotations

import torch

F64 = torch.float64
# coinciding points, neighbours, far points
SITES = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.2, -0.1], [2.0, -1.0, 0.7]], dtype=F64)


def sites(n: int, d: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.rand(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def matrix(kernel, x):
    return kernel.at_pairs(x[:, None], x[None])


def smallest_eigenvalue(kernel, x) -> float:
    """Smallest eigenvalue, relative to the largest."""
    values = torch.linalg.eigvalsh(matrix(kernel, x).detach())
    return (values[..., 0] / values[..., -1]).min().item()


class _Call(torch.nn.Module):
    def __init__(self, kernel, function):
        super().__init__()
        self.kernel, self.function = kernel, function

    def forward(self):
        return self.function(self.kernel)


def check_gradients(kernel, function, *, second: bool = True) -> None:
    """First and second derivatives of ``function(kernel)`` in every parameter against finite differences."""
    call = _Call(kernel, function)
    names = [name for name, p in call.named_parameters() if p.requires_grad]
    raw = [p.detach().clone().requires_grad_() for _, p in call.named_parameters() if p.requires_grad]
    assert raw

    def values(*parameters):
        return torch.func.functional_call(call, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(values, raw)
    if second:
        assert torch.autograd.gradgradcheck(values, raw)


def check_batch(batched, single, function, rtol: float = 1e-13) -> None:
    """``function`` of a kernel with a batch is the stack of those of its members."""
    together = function(batched)
    apart = torch.stack([function(kernel) for kernel in single])
    torch.testing.assert_close(together, apart.reshape(together.shape), rtol=rtol, atol=1e-14)
