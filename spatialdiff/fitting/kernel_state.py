"""Kernels as plain data.

A kernel of ``spatialdiff.kernels`` is written as the arguments of its constructor, kernels inside it as trees
of the same kind, and the tensors of its ``state_dict``: the arguments give the structure, the tensors every
value to the bit. It is rebuilt by calling constructors of that package only. Any other gpytorch kernel is
written as its tensors alone; reading it back needs a kernel of the same structure to load them into, since
rebuilding an arbitrary class from a file would mean executing what the file says.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel
from torch import Tensor, nn

from spatialdiff import kernels
from spatialdiff.kernels import Coregionalization, Nugget, Product, Sum
from spatialdiff.kernels.local import ConstantField


class _Unknown(Exception):
    """Something inside a kernel that cannot be written as data."""


def _families() -> dict[str, type[nn.Module]]:
    named = {name: getattr(kernels, name) for name in kernels.__all__}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, type) and issubclass(value, nn.Module) and not inspect.isabstract(value)
    }


def kernel_state(kernel: Kernel | Coregionalization) -> dict[str, Any]:
    """``kernel`` as nested dictionaries of tensors, numbers and strings."""
    tensors = {name: value.detach().clone() for name, value in kernel.state_dict().items()}
    try:
        return {"tree": _tree(kernel), "tensors": tensors}
    except _Unknown:
        return {"class": type(kernel).__name__, "tensors": tensors}


def kernel_from_state(
    state: Mapping[str, Any], template: Kernel | Coregionalization | None = None
) -> Kernel | Coregionalization:
    """Rebuild a kernel, without gradients; ``template`` is needed (and only used) for kernels that are not
    ours.

    Raises:
        ValueError: where a template is needed, or its structure is another; a state that was not made by
            `kernel_state`.
    """
    if "tree" in state:
        kernel = _grow(state["tree"])
        if not isinstance(kernel, Kernel | Coregionalization):
            raise ValueError(f"the saved {type(kernel).__name__} is not a kernel")
        what = f"the saved tensors do not fit the saved {type(kernel).__name__}"
        return _loaded(kernel, state["tensors"], what)
    if template is None:
        raise ValueError(
            f"the saved kernel is a gpytorch {state['class']}, which cannot be rebuilt from data alone: "
            "pass a kernel of the same structure as kernel="
        )
    what = f"the given kernel has another structure than the saved {state['class']}"
    return _loaded(copy.deepcopy(template), state["tensors"], what)


def _loaded(
    kernel: Kernel | Coregionalization, tensors: Mapping[str, Tensor], what: str
) -> Kernel | Coregionalization:
    """``kernel`` with the values and data types of ``tensors``; raises ValueError where they do not fit."""
    needed = {name: tuple(value.shape) for name, value in kernel.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if needed != given:
        raise ValueError(f"{what}: tensors of shapes {given}, and not {needed}")
    named = {**dict(kernel.named_parameters()), **dict(kernel.named_buffers())}
    for name, value in tensors.items():
        named[name].data = value.detach().clone()
    return kernel.requires_grad_(False)


def _tree(module: nn.Module) -> dict[str, Any]:
    kind: type[nn.Module] = type(module)
    if kind in (AdditiveKernel, ProductKernel):
        kind = Sum if kind is AdditiveKernel else Product
    if _families().get(kind.__name__) is not kind:
        raise _Unknown
    if isinstance(module, Coregionalization):
        pairs = zip(module.roots, module.kernels, strict=True)
        terms = [[_matrix(root.detach()), _tree(kernel)] for root, kernel in pairs]
        return {"kind": kind.__name__, "arguments": {"terms": terms}}
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = [_data(part) for part in getattr(module, name)]
        elif name == "batch_shape":
            # without that of the kernels inside
            arguments[name] = list(getattr(module, "_batch_shape", ()))
        else:
            value = getattr(module, f"{name}_field", getattr(module, name, None))
            arguments[name] = _data(_trimmed(value, module))
    return {"kind": kind.__name__, "arguments": arguments}


def _matrix(root: Tensor) -> Tensor:
    """``L Lᵀ``; where rounding hides its rank, a matrix whose root has the shape of ``L``, whose values are
    among the tensors."""
    matrix = (root @ root.mT).double()
    if Coregionalization([(matrix, Nugget(1.0))]).roots[0].shape == root.shape:
        return matrix
    rank = root.shape[-1]
    placeholder = torch.eye(root.shape[-2], rank, dtype=torch.float64)
    return (placeholder @ placeholder.T).expand(matrix.shape).clone()


def _trimmed(value: Any, module: nn.Module) -> Any:
    """One number per axis as constructors take it, where gpytorch holds ``(*batch, 1, axes)``."""
    if isinstance(module, Kernel) and isinstance(value, Tensor):
        batch = getattr(module, "_batch_shape", ())
        if value.dim() == len(batch) + 2 and value.shape[-2] == 1:
            return value.squeeze(-2)
    return value


def _data(value: Any) -> Any:
    if isinstance(value, ConstantField):
        return value.raw_value.detach().exp()
    if isinstance(value, nn.Module):
        return _tree(value)
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return [_data(part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise _Unknown


def _grow(tree: Mapping[str, Any]) -> nn.Module:
    known = _families()
    kind = known.get(tree["kind"])
    if kind is None:
        raise ValueError(f"unknown kernel {tree['kind']!r} in the saved fit; known: {', '.join(known)}")
    signature = inspect.signature(kind).parameters
    positional, named = [], {}
    for name, saved in tree["arguments"].items():
        if name not in signature:
            raise ValueError(f"the saved {tree['kind']} has an argument {name!r}, which it does not take")
        value = _value(saved)
        if signature[name].kind is inspect.Parameter.VAR_POSITIONAL:
            positional = value
        else:
            named[name] = value
    return kind(*positional, **named)


def _value(saved: Any) -> Any:
    if isinstance(saved, Mapping):
        return _grow(saved)
    return [_value(part) for part in saved] if isinstance(saved, list) else saved
