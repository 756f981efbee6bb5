"""Training: one loop for every objective, with checkpoints from which a run goes on exactly."""

from __future__ import annotations

from spatialdiff.training.checkpoint import CheckpointError, load_weights
from spatialdiff.training.metrics import read_metrics
from spatialdiff.training.run import TrainingError
from spatialdiff.training.trainer import Trainer

__all__ = ["CheckpointError", "Trainer", "TrainingError", "load_weights", "read_metrics"]
