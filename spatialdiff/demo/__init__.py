"""The main job on real terrain: fit Γ, train three models on equal budgets, sample, compare, report."""

from __future__ import annotations

from spatialdiff.demo.config import DemoConfig

__all__ = ["DemoConfig"]
