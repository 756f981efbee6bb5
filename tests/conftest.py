"""What every test begins with."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """Torch's own generator starts from the clock; a test must draw the same every time."""
    torch.manual_seed(0)
