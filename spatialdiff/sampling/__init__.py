"""From noise to fields: solvers, time grids and the loop that runs them."""

from spatialdiff.sampling.base import Noise, Solver, run
from spatialdiff.sampling.grids import GRIDS, time_grid
from spatialdiff.sampling.sample import SOLVERS, sample

__all__ = ["GRIDS", "SOLVERS", "Noise", "Solver", "run", "sample", "time_grid"]
