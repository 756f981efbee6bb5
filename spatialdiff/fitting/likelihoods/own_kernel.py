"""A copy of a model's kernel, set to θ, for structures that read their kernel again in a backward pass.

Swapping parameters for the time of a call (``torch.func.functional_call``) is not enough for them: a backward
pass that makes tiles or blocks once more runs after the call, when the old parameters are back.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from spatialdiff.fitting.parameters import KernelParameters


class OwnKernel:
    """The copy, and the way from derivatives in its parameters to those in θ."""

    def __init__(self, model: KernelParameters) -> None:
        self.model = model
        self.kernel = copy.deepcopy(model.kernel).requires_grad_(True)
        self._parameters = dict(self.kernel.named_parameters())

    def set(self, theta: Tensor) -> None:
        """Set the kernel to θ."""
        with torch.no_grad():
            for path, value in self.model.raw_values(theta).items():
                self._parameters[path].copy_(value)

    def slope(self, value: Tensor, theta: Tensor, weight: Tensor | None = None) -> Tensor:
        """Derivative ``(p,)`` in θ, at which the kernel is set, of ``value`` (summed with ``weight``), a
        function of the kernel's parameters."""
        with torch.enable_grad():
            point = theta.detach().clone().requires_grad_()
            raw = self.model.raw_values(point)
        names = list(raw)
        slopes = torch.autograd.grad(
            value, [self._parameters[name] for name in names], weight, allow_unused=True
        )
        with torch.enable_grad():
            terms = [(raw[n] * s).sum() for n, s in zip(names, slopes, strict=True) if s is not None]
            terms = [term for term in terms if term.requires_grad]
            if not terms:
                return torch.zeros_like(theta)
            (slope,) = torch.autograd.grad(torch.stack(terms).sum(), point)
        return slope
