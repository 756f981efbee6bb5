"""What every test begins with."""

from __future__ import annotations

import hypothesis
import pytest
import torch

# the same examples every time, as every other test has its seed; a slow machine is no failure
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seed():
    """Torch's own generator starts from the clock; a test must draw the same every time."""
    torch.manual_seed(0)
