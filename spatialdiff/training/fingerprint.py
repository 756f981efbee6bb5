"""What a run is made of, as plain data: to tell a checkpoint of another configuration, and to say what
differs.

Every module's class and public settings are listed, the shapes of the trained parameters, and for every other
tensor (a covariance's parameters, a fitted mean) its shape and three moments, which are compared to 1e-5:
they are fitted, and may differ in the last digits.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


def _moments(x: Tensor) -> list[Any]:
    about: list[Any] = [str(list(x.shape)), str(x.dtype)]
    flat = (
        x.detach().double().flatten()
        if not x.is_complex()
        else torch.view_as_real(x.detach()).double().flatten()
    )
    if flat.numel():
        rms = flat.square().mean().sqrt()
        unit = flat / rms if rms > 0 else flat
        ramp = torch.cos(torch.arange(flat.numel(), dtype=torch.float64, device=flat.device))
        about += [rms.item(), unit.mean().item(), (unit * ramp).sum().item() / math.sqrt(flat.numel())]
    return about


def _settings(owner: object, prefix: str, out: dict[str, Any], seen: set[int]) -> None:
    """List the public attributes of `owner` that are settings, going into objects of this package and
    dataclasses."""
    for name, value in vars(owner).items():
        computed = isinstance(inspect.getattr_static(type(owner), name, None), functools.cached_property)
        if not name.startswith("_") and name != "training" and not computed:
            _describe(value, f"{prefix}.{name}", out, seen)


def _describe(value: Any, name: str, out: dict[str, Any], seen: set[int]) -> None:
    if isinstance(value, bool | int | float | str | None):
        out[name] = value
    elif isinstance(value, enum.Enum | torch.dtype | torch.device):
        out[name] = str(value)
    elif isinstance(value, Tensor):
        out[name] = _moments(value)
    elif isinstance(value, nn.Module) or id(value) in seen:
        return  # modules are listed where they are registered
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _describe(item, f"{name}[{key!r}]", out, seen)
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            _describe(item, f"{name}[{i}]", out, seen)
    elif inspect.isroutine(value):
        out[name] = getattr(value, "__qualname__", type(value).__qualname__)
    elif dataclasses.is_dataclass(value) or type(value).__module__.partition(".")[0] == "spatialdiff":
        # only what is being listed is left out: whether two owners share an object or have equal ones, which
        # differs between a run and its repetition from files, is no setting
        inside = seen | {id(value)}
        out[name] = type(value).__qualname__
        if hasattr(value, "__dict__"):
            _settings(value, name, out, inside)


def describe(root: nn.Module, trained: nn.Module, name: str = "objective") -> dict[str, Any]:
    """The settings and tensors of `root`; of the module `trained`, whose weights change, only the shapes."""
    out: dict[str, Any] = {}
    seen: set[int] = set()
    inside = {id(p) for p in (*trained.parameters(), *trained.buffers())}
    for path, module in root.named_modules():
        prefix = f"{name}.{path}" if path else name
        out[prefix] = type(module).__qualname__
        _settings(module, prefix, out, seen)
        persistent = module.state_dict(keep_vars=True)
        for key, value in persistent.items():
            if "." not in key and isinstance(value, Tensor):
                out[f"{prefix}.{key}"] = str(list(value.shape)) if id(value) in inside else _moments(value)
    return out


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(a == b)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], limit: int = 8) -> list[str]:
    """What differs, one readable line each, of which at most `limit`."""
    lines = []
    for key in dict.fromkeys((*saved, *now)):
        if key not in saved:
            lines.append(f"{key} is {now[key]!r} now and was absent")
        elif key not in now:
            lines.append(f"{key} was {saved[key]!r} and is absent now")
        elif not _equal(saved[key], now[key]):
            lines.append(f"{key} was {saved[key]!r} and is {now[key]!r} now")
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more"]
