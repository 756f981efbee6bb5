r"""``y = K(θ) x`` by tiles, with its derivative in ``x`` and in the parameters, in memory ``O(n)``.

Since ``K`` is symmetric the derivative in ``x`` is one more product. For a sum of closed forms the one in a
variance is ``Σ_ij w_ij ρ_ij`` and in a scale ``v/β_a Σ_ij w_ij φ_ij (u_i - u_j)_a²``
with ``w_ij = Σ_s g_si x_sj``, by one pass over the tiles; for any other kernel every tile is made again
with its graph.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.points import tiles_plain
from spatialdiff.covariance.points.closed_forms import closed_form

BACKENDS = ("auto", "plain", "numba", "keops")


@dataclass(frozen=True)
class Engine:
    """One way to make the tiles of a closed form: `tiles_plain`, `tiles_compiled` or `tiles_keops`."""

    name: str
    multiply: Callable[[str, Tensor, Tensor], Tensor]
    moments: Callable[[str, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def choose_backend(
    backend: str, kernel: gpytorch.kernels.Kernel, d: int, device: torch.device
) -> tuple[str, str]:
    """The backend and why.

    Raises:
        ValueError: an unknown name, or a kernel or device that the backend does not have.
        ImportError: a backend that is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    closed = closed_form(kernel, d) is not None
    families = "sums of Matern(1/2, 3/2, 5/2), Exponential, Gaussian and Nugget"
    if backend in ("numba", "keops"):
        package = {"numba": "numba", "keops": "pykeops"}[backend]
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f'backend="{backend}" needs {package}, which is not installed: pip install {package}.'
            )
        if not closed:
            raise ValueError(
                f'backend="{backend}" has {families} only; use backend="plain" for {type(kernel).__name__}.'
            )
        if backend == "numba" and device.type != "cpu":
            raise ValueError(f'backend="numba" works on the CPU, Γ is on {device}; use "keops" or "plain".')
        return backend, "as asked for"
    if backend == "plain":
        return backend, "as asked for"
    if not closed:
        return "plain", f"the compiled tiles have {families} only"
    wanted, package = ("numba", "numba") if device.type == "cpu" else ("keops", "pykeops")
    if importlib.util.find_spec(package) is None:
        return "plain", f"{package} is not installed"
    return wanted, f"a closed form on {device.type}"


def engine(name: str) -> Engine:
    """The engine of a backend."""
    if name == "numba":
        from spatialdiff.covariance.points import tiles_compiled

        return Engine(name, tiles_compiled.multiply, tiles_compiled.moments)
    if name == "keops":
        from spatialdiff.covariance.points import tiles_keops

        return Engine(name, tiles_keops.multiply, tiles_keops.moments)
    return Engine("plain", tiles_plain.multiply, tiles_plain.moments)


def kernel_product(kernel: gpytorch.kernels.Kernel, sites: Tensor, x: Tensor, backend: str) -> Tensor:
    """``y_i = Σ_j k(x_i, x_j) x_j`` for all pairs, in the data type of ``x``.

    Equal sites share all of ``k`` but the nugget.

    Args:
        kernel: any kernel.
        sites: ``(n, d)`` float64.
        x: ``(..., *batch, n)`` for a kernel with ``batch_shape``.
        backend: ``"plain"``, ``"numba"`` or ``"keops"``.
    """
    n, batch = len(sites), kernel.batch_shape
    fields = x.reshape(-1, *batch, n)
    form = closed_form(kernel, sites.shape[-1])
    if form is not None:
        flat = fields.reshape(len(fields), -1, n)
        product: Tensor = _ClosedProduct.apply(
            flat,
            form.variances.reshape(len(form.families), -1),
            form.scales.reshape(len(form.families), flat.shape[1], -1),
            sites - sites.mean(0),
            form.families,
            engine(backend),
        )
        result = product.reshape(fields.shape) + form.nugget.to(x.dtype).unsqueeze(-1) * fields
        return result.reshape(x.shape)
    # differences of far-away coordinates would lose digits in float32
    moved = sites - sites.mean(0) if kernel.is_stationary else sites
    parameters = [p for p in kernel.parameters() if p.requires_grad]
    columns = fields.movedim(0, -1)
    result = _PairProduct.apply(columns, kernel, moved.to(x.dtype), *parameters).movedim(-1, 0)
    return _split_nugget(kernel, sites, result, fields).reshape(x.shape)


def _split_nugget(kernel: gpytorch.kernels.Kernel, sites: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Take the nugget out from between equal sites."""
    unique, group = torch.unique(sites, dim=0, return_inverse=True)
    if len(unique) == len(sites):
        return y
    nugget = getattr(kernel, "nugget", torch.zeros((), dtype=torch.float64)).to(x.dtype)
    sums = x.new_zeros(*x.shape[:-1], len(unique)).index_add(-1, group, x)
    return y - nugget.unsqueeze(-1) * (sums.index_select(-1, group) - x)


class _ClosedProduct(torch.autograd.Function):
    """``y_sh = Σ_t v_th K_th x_sh`` of ``x`` ``(S, H, n)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        variances: Tensor,
        scales: Tensor,
        sites: Tensor,
        families: tuple[str, ...],
        tiles: Engine,
    ) -> Tensor:
        ctx.save_for_backward(x, variances, scales, sites)
        ctx.families, ctx.tiles = families, tiles
        return _closed(x, variances, scales, sites, families, tiles)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, variances, scales, sites = ctx.saved_tensors
        g = grads[0].contiguous()
        through = None
        if ctx.needs_input_grad[0]:
            through = _closed(g, variances, scales, sites, ctx.families, ctx.tiles)
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return through, None, None, None, None, None
        to_variances, to_scales = torch.zeros_like(variances), torch.zeros_like(scales)
        for t, family in enumerate(ctx.families):
            for h in range(x.shape[1]):
                coordinates = _scaled(sites, scales[t, h], x.dtype)
                value, slopes = ctx.tiles.moments(family, coordinates, g[:, h], x[:, h])
                to_variances[t, h] = value
                to_scales[t, h] = variances[t, h] * slopes / scales[t, h]
        return through, to_variances, to_scales, None, None, None


def _scaled(sites: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``β x`` as ``(d, n)``; scaled and centred in float64."""
    return (sites * scale).T.to(dtype).contiguous()


def _closed(
    x: Tensor, variances: Tensor, scales: Tensor, sites: Tensor, families: tuple[str, ...], tiles: Engine
) -> Tensor:
    result = torch.zeros_like(x)
    for t, family in enumerate(families):
        for h in range(x.shape[1]):
            coordinates = _scaled(sites, scales[t, h], x.dtype)
            part = tiles.multiply(family, coordinates, x[:, h].contiguous())
            result[:, h] += variances[t, h].to(x.dtype) * part
    return result


class _PairProduct(torch.autograd.Function):
    """``y = K x`` of ``x`` ``(*batch, n, S)`` through the kernel's values at pairs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: gpytorch.kernels.Kernel, sites: Tensor, *parameters: Tensor
    ) -> Tensor:
        # the parameters are saved so that one changed in place is noticed
        ctx.save_for_backward(x, sites, *parameters)
        ctx.kernel = kernel
        return tiles_plain.multiply_pairs(kernel, sites, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, sites, *_ = ctx.saved_tensors
        parameters = [p for p in ctx.kernel.parameters() if p.requires_grad]
        g = grads[0].contiguous()
        through = tiles_plain.multiply_pairs(ctx.kernel, sites, g) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):
            return through, None, None, *(None for _ in parameters)
        return through, None, None, *tiles_plain.gradient_pairs(ctx.kernel, sites, g, x, parameters)
