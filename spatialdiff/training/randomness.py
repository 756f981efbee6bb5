"""The state of every global random generator as plain data, so that a run can be isolated and resumed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators on the CPU and `device`, of numpy's global one and of Python's."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - users' data sets draw from it
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Set every global generator to a captured state."""
    kind, keys, *rest = state["numpy"]
    torch.set_rng_state(state["torch"].cpu())
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def seeded(seed: int, device: torch.device) -> dict[str, Any]:
    """The states that seeding every global generator with `seed` gives, leaving them as they are."""
    before = capture(device)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    state = capture(device)
    restore(before, device)
    return state


@contextmanager
def isolated(state: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Run under the captured `state`, which is updated on leaving; the world outside finds its generators as
    it left them."""
    before = capture(device)
    restore(state, device)
    try:
        yield
    finally:
        state.update(capture(device))
        restore(before, device)
