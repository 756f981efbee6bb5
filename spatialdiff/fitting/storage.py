"""How the numbers of a kernel are stored: through gpytorch's constraints, as logarithms, or as they are."""

from __future__ import annotations

import math
from typing import Any

from gpytorch.module import Module
from torch import Tensor, nn

from spatialdiff.kernels import GridField
from spatialdiff.kernels.local import ConstantField


class _Logarithm:
    """How :class:`~spatialdiff.kernels.local.ConstantField` stores a positive number."""

    lower_bound, upper_bound = 0.0, math.inf

    @staticmethod
    def transform(raw: Tensor) -> Tensor:
        return raw.exp()

    @staticmethod
    def inverse_transform(natural: Tensor) -> Tensor:
        return natural.log()


class _Positive:
    """A positive number stored as it is."""

    lower_bound, upper_bound = 0.0, math.inf

    @staticmethod
    def transform(raw: Tensor) -> Tensor:
        return raw

    @staticmethod
    def inverse_transform(natural: Tensor) -> Tensor:
        return natural


def constraints_of(kernel: nn.Module) -> dict[str, Any]:
    """How each parameter is stored, by path: an object with ``transform``, ``inverse_transform`` and bounds;
    ``None`` where it is stored as it is.

    Raises:
        ValueError: trainable matrices of a local anisotropy.
    """
    found: dict[str, Any] = {}
    for path, _ in kernel.named_parameters():
        owner_path, _, name = path.rpartition(".")
        owner: Any = kernel.get_submodule(owner_path)
        if isinstance(owner, ConstantField):
            found[path] = _Logarithm()
        elif isinstance(owner, GridField):
            quantity = quantity_of(owner_path)
            if quantity == "anisotropy":
                raise ValueError(
                    "the matrices of a local anisotropy have to stay positive definite, which single numbers "
                    "do not: use lengthscale=GridField(..., trainable=True) and angles=GridField(..., "
                    "trainable=True) instead of anisotropy="
                )
            found[path] = None if quantity == "angles" else _Positive()
        else:
            is_gpytorch = isinstance(owner, Module)
            found[path] = owner.constraint_for_parameter_name(name) if is_gpytorch else None
    return found


def quantity_of(owner_path: str) -> str:
    """The local quantity that a field inside a kernel is, such as ``lengthscale``."""
    return owner_path.rpartition(".")[2].removesuffix("_field")
