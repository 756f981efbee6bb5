"""Kernels as plain data.

Kernels of ``spatialdiff.kernels`` are written as a tree of names and numbers and rebuilt from it. Any other
gpytorch kernel is written as the tensors of its ``state_dict``; reading it back needs a kernel of the same
structure to load them into, since rebuilding an arbitrary class from a file would mean executing what the
file says.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel

from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, Product, Sum

_LEAVES: dict[str, type[Kernel]] = {
    "Exponential": Exponential,
    "Gaussian": Gaussian,
    "Matern": Matern,
    "Nugget": Nugget,
}


def kernel_state(kernel: Kernel) -> dict[str, Any]:
    """``kernel`` as nested dictionaries of tensors, numbers and strings."""
    tree = _tree(kernel)
    if tree is not None:
        return {"dtype": str(next(kernel.parameters()).dtype).removeprefix("torch."), "tree": tree}
    return {
        "class": type(kernel).__name__,
        "tensors": {k: v.detach().clone() for k, v in kernel.state_dict().items()},
    }


def kernel_from_state(state: Mapping[str, Any], template: Kernel | None = None) -> Kernel:
    """Rebuild a kernel; ``template`` is needed (and only used) for kernels that are not ours.

    Raises:
        ValueError: where a template is needed, or its structure is another.
    """
    if "tree" in state:
        kernel = _grow(state["tree"])
        return kernel.to(getattr(torch, state["dtype"])).requires_grad_(False)
    if template is None:
        raise ValueError(
            f"the saved kernel is a gpytorch {state['class']}, which cannot be rebuilt from data alone: "
            "pass a kernel of the same "
            "structure as kernel="
        )
    kernel = copy.deepcopy(template)
    dtypes = {value.dtype for value in state["tensors"].values() if value.is_floating_point()}
    if dtypes:
        kernel = kernel.to(dtypes.pop())
    try:
        kernel.load_state_dict(state["tensors"])
    except RuntimeError as error:
        raise ValueError(
            f"the given kernel has another structure than the saved {state['class']}: {error}"
        ) from error
    return kernel.requires_grad_(False)


def _tree(kernel: Kernel) -> dict[str, Any] | None:
    name = type(kernel).__name__
    if _LEAVES.get(name) is type(kernel):
        tree: dict[str, Any] = {"kind": name, "variance": kernel.variance.detach().clone()}
        if name != "Nugget":
            tree["lengthscale"] = kernel.lengthscale.detach().reshape(-1).clone()
        if name == "Matern":
            tree["nu"] = float(kernel.nu)
        return tree
    if isinstance(kernel, AdditiveKernel | ProductKernel):
        parts = [_tree(part) for part in kernel.kernels]
        if all(part is not None for part in parts):
            return {"kind": "Sum" if isinstance(kernel, AdditiveKernel) else "Product", "parts": parts}
    return None


def _grow(tree: Mapping[str, Any]) -> Kernel:
    kind = tree["kind"]
    if kind in ("Sum", "Product"):
        parts = [_grow(part) for part in tree["parts"]]
        return Sum(*parts) if kind == "Sum" else Product(*parts)
    if kind not in _LEAVES:
        raise ValueError(
            f"unknown kernel {kind!r} in the saved fit; known: Sum, Product, {', '.join(_LEAVES)}"
        )
    options = {key: value for key, value in tree.items() if key != "kind"}
    length = options.get("lengthscale")
    if length is not None and length.numel() == 1:
        options["lengthscale"] = length.reshape(())
    return _LEAVES[kind](**options)
