"""Kernels as configuration, and configuration as kernels.

A kernel is written as the class path of its constructor and plain arguments, kernels inside it likewise.
Where a constructor takes several kernels or an array, which a configuration cannot give it, the functions
here stand in for it: ``k_1 + k_2`` is ``spatialdiff.cli.kernels.total``, ``k_1 k_2`` ``…product``, and so on.
What is written rebuilds the kernel with the same values (to rounding) and the same parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.fitting.kernel_state import kernel_state
from spatialdiff.kernels import GridField, Nonstationary, Product, Separable, StationaryKernel, Sum

HERE = "spatialdiff.cli.kernels"


def total(kernels: list[Kernel]) -> Kernel:
    """``k_1 + … + k_n``."""
    return Sum(*kernels)


def product(kernels: list[Kernel]) -> Kernel:
    """``k_1 ⋯ k_n``."""
    return Product(*kernels)


def separable(kernels: list[Kernel], axes: list[list[int]]) -> Kernel:
    """A product of kernels of disjoint groups of axes."""
    return Separable(*kernels, axes=axes)


def grid_field(
    values: list[Any], spacing: list[float], origin: list[float], trainable: bool = False
) -> nn.Module:
    """A local quantity that is interpolated from values on a grid."""
    return GridField(torch.tensor(values, dtype=torch.float64), spacing, origin, trainable=trainable)


def nonstationary(
    kernel: StationaryKernel,
    lengthscale: float | list[float] | nn.Module | None = None,
    angles: float | list[float] | nn.Module | None = None,
    anisotropy: nn.Module | None = None,
    standard_deviation: float | nn.Module | None = None,
) -> Kernel:
    """A family with local length scales, angles and standard deviations, each a number or a grid field."""
    return Nonstationary(
        kernel,
        lengthscale,
        angles=angles,
        anisotropy=anisotropy,
        standard_deviation=standard_deviation,
    )


_FUNCTIONS = {
    "Sum": "total",
    "Product": "product",
    "Separable": "separable",
    "GridField": "grid_field",
    "Nonstationary": "nonstationary",
}


def kernel_config(kernel: Kernel) -> dict[str, Any] | list[dict[str, Any]]:
    """The kernel as configuration: class path and arguments, or a list of them for a sum.

    Raises:
        ValueError: a kernel that a configuration cannot name: not of ``spatialdiff.kernels``, with a network
            or a function inside, or with a batch of hyperparameters.
    """
    tree = kernel_state(kernel).get("tree")
    if tree is None:
        raise ValueError(
            f"no configuration can name this {type(kernel).__name__}: it is, or holds, something that is not "
            "of spatialdiff.kernels, such as a network or a function."
        )
    config = _configuration(tree)
    if config["class_path"] == f"{HERE}.total":
        parts: list[dict[str, Any]] = config["init_args"]["kernels"]
        return parts
    return config


def _configuration(tree: Mapping[str, Any]) -> dict[str, Any]:
    kind, arguments = tree["kind"], dict(tree["arguments"])
    if arguments.pop("batch_shape", None):
        raise ValueError(f"no configuration can name a batch of hyperparameters, as in this {kind}.")
    function = _FUNCTIONS.get(kind)
    path = f"spatialdiff.kernels.{kind}" if function is None else f"{HERE}.{function}"
    values = {name: _plain(value) for name, value in arguments.items() if value is not None}
    return {"class_path": path, "init_args": values}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _configuration(value)
    if isinstance(value, Tensor):
        numbers = value.detach().double()
        return numbers.item() if numbers.numel() == 1 else numbers.tolist()
    return [_plain(part) for part in value] if isinstance(value, list) else value


def read_kernel(path: str | Path) -> Any:
    """What ``kernel.yaml`` holds under ``kernel``: of that file, or of the run folder of a fit.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file names no kernel.
    """
    file = Path(path)
    file = file / "kernel.yaml" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no kernel at {file}: give the kernel.yaml, or the run folder, of a `spatialdiff fit` "
            "with a kernel, or a class path such as spatialdiff.kernels.Matern."
        )
    found = yaml.safe_load(file.read_text())
    if not isinstance(found, Mapping) or not found.get("kernel"):
        raise ValueError(
            f"{file} names no kernel: it needs an entry kernel, with a class_path and init_args."
        )
    return found["kernel"]


def with_kernels_read(argv: Sequence[str]) -> list[str]:
    """The arguments, with a file or run folder given as ``--kernel`` or ``--noise`` replaced by its kernel.

    The resolved configuration of a run then holds the kernel itself, whatever becomes of the file.
    """
    found: list[str] = []
    items = list(argv)
    while items:
        item = items.pop(0)
        name, sign, value = item.partition("=")
        if name in ("--kernel", "--noise"):
            if not sign and items and not items[0].startswith("--"):
                sign, value = "=", items.pop(0)
            if sign and _is_path(value):
                value = yaml.safe_dump(read_kernel(value), default_flow_style=True, width=10**9).strip()
            item = f"{name}{sign}{value}"
        found.append(item)
    return found


def _is_path(value: str) -> bool:
    return value.endswith((".yaml", ".yml")) or "/" in value or Path(value).is_dir()
