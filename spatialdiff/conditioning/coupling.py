r"""Bridges from kriged fields to plausible ones.

Let ``x_0`` be the kriged field of the data ``x_τ`` at some cells and Γ the kriging covariance. Where the data
are Gaussian with the kernel's covariance, ``x_τ | x_0 ~ N(x_0, Γ)``, so that for the Brownian bridge of Γ
with ``B(τ) = 1`` the posterior mean of the end is the state, ``E[x_τ | X_t] = X_t``: the mixture of bridges
is Brownian motion from the kriged field to the conditional law, and what a network has to learn is how far
the data are from Gaussian. Without noise Γ is 0 at the observed cells, and every state honours the data.

`KrigedStart` makes pairs ``(x_τ, x_0)`` for the coupling "paired", from observed cells of each field. For one
set of observations `IndependentField(std, mean=kriged)` starts from ``N(kriged, std² Γ)``, with the law in
closed form.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spatialdiff.conditioning.conditional import ConditionalCovariance
from spatialdiff.conditioning.filling import Drift, fill
from spatialdiff.conditioning.kriging import Kriging
from spatialdiff.domains import Grid

# numbers of the kriging weights of fixed cells that are kept
_MOST_WEIGHTS = 40_000_000


class KrigedStart:
    """The start of a bridge for each data field: kriged from some of its cells.

    Use it with the coupling ``"paired"``: ``objective(start.pair(x1))``, or `dataset` for a trainer; to
    sample, pass ``start=`` the kriged field of the observations at hand.

    Args:
        kernel: any stationary kernel, in the grid's unit of length.
        grid: the grid of the fields.
        cells: which cells are observed: a bool mask ``grid.shape``, the same for all fields, or a number of
            cells that is drawn at random for each field.
        drift, noise: as in `fill`: the mean, and the variance of measurement errors.
        simulate: start from a conditional simulation instead of the kriged field.

    Raises:
        TypeError: ``cells`` of another type.
        ValueError: a mask of another shape, no cell or all of them; what `fill` refuses.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        grid: Grid,
        cells: Tensor | int,
        *,
        drift: Drift = "constant",
        noise: float = 0.0,
        simulate: bool = False,
    ) -> None:
        if isinstance(cells, bool) or not isinstance(cells, Tensor | int):
            raise TypeError(
                f"KrigedStart: cells must be a bool mask or a number, got {type(cells).__name__}."
            )
        if isinstance(cells, Tensor) and (cells.dtype != torch.bool or tuple(cells.shape) != grid.shape):
            raise ValueError(
                f"KrigedStart: a mask of cells must be bool of shape {grid.shape}, got {cells.dtype} "
                f"{tuple(cells.shape)}."
            )
        count = int(cells.sum()) if isinstance(cells, Tensor) else cells
        if not 0 < count < grid.size:
            raise ValueError(f"KrigedStart: {count} of {grid.size} cells observed; needed some, not all.")
        self.kernel, self.grid, self.cells, self.count = kernel, grid, cells, count
        self.drift, self.noise, self.simulate = drift, noise, simulate
        self._weights: Tensor | None = None

    def mask(self, fields: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The observed cells of so many fields, bool ``(fields, *grid.shape)``."""
        if isinstance(self.cells, Tensor):
            return self.cells.expand(fields, *self.grid.shape)
        chosen = torch.rand(fields, self.grid.size, generator=generator).topk(self.count, dim=-1).indices
        mask = torch.zeros(fields, self.grid.size, dtype=torch.bool).scatter(-1, chosen, True)
        return mask.reshape(fields, *self.grid.shape)

    def start(self, x1: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``x_0`` of data ``(B, C, *grid)``, of the same shape and type; the channels of a field are observed
        at the same cells.
        """
        if x1.dim() != 2 + self.grid.ndim or tuple(x1.shape[2:]) != self.grid.shape:
            raise ValueError(
                f"KrigedStart: data need shape (B, C, {', '.join(map(str, self.grid.shape))}), got "
                f"{tuple(x1.shape)}."
            )
        mask = self.mask(len(x1), generator=generator)
        values = x1.detach().to(torch.float64)
        if self.noise:
            error = torch.randn(values.shape, generator=generator, dtype=torch.float64)
            values = values + self.noise**0.5 * error
        fixed = isinstance(self.cells, Tensor) and self.count * self.grid.size <= _MOST_WEIGHTS
        if fixed and not self.simulate:
            observed = values[:, :, mask[0]]
            kriged = (observed @ self.weights()).reshape(values.shape)
            if not self.noise:
                kriged[:, :, mask[0]] = observed
            return kriged.to(x1.dtype)
        filled = fill(
            values,
            self.kernel,
            self.grid,
            missing=~mask.unsqueeze(1),
            drift=self.drift,
            noise=self.noise,
            n=1 if self.simulate else None,
            generator=generator,
        )
        result = filled.mean if filled.samples is None else filled.samples[0]
        return result.to(x1.dtype)

    def weights(self) -> Tensor:
        """The kriging weights of fixed cells ``(m, cells of the grid)``, float64: the fields kriged from unit
        vectors.
        """
        if not isinstance(self.cells, Tensor):
            raise ValueError("KrigedStart: cells drawn at random have no weights in common.")
        if self._weights is None:
            units = torch.zeros(self.count, self.grid.size, dtype=torch.float64)
            units[:, self.cells.reshape(-1)] = torch.eye(self.count, dtype=torch.float64)
            kriged = fill(
                units.reshape(self.count, *self.grid.shape),
                self.kernel,
                self.grid,
                missing=~self.cells,
                drift=self.drift,
                noise=self.noise,
                tolerance=1e-10,
                variance=False,
            )
            self._weights = kriged.mean.reshape(self.count, -1)
        return self._weights

    def pair(self, x1: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``(x1, x0)`` as `BridgeMixture` takes it."""
        return x1, self.start(x1, generator=generator)

    def dataset(self, fields: Tensor, *, seed: int = 0) -> Dataset[tuple[Tensor, Tensor]]:
        """Pairs of ``fields`` ``(N, C, *grid)``, item by item; random cells, errors and draws of an item are
        the same every time.
        """
        return _Pairs(self, fields, seed)

    def covariance(self) -> ConditionalCovariance:
        """The kriging covariance given fixed cells: Γ of the bridge from the kriged field.

        Raises:
            ValueError: cells drawn at random; drift functions given as fields.
        """
        if not isinstance(self.cells, Tensor):
            raise ValueError(
                "KrigedStart.covariance: cells drawn at random give every field a kriging covariance of its "
                "own; use a fixed mask, or the covariance of the kernel as Γ."
            )
        if isinstance(self.drift, Tensor):
            raise ValueError(
                "KrigedStart.covariance: for drift functions given as fields call sd.Kriging(...).covariance "
                "with the covariates at observations and targets."
            )
        sites = self.grid.coordinates()[self.cells]
        nothing = torch.zeros(len(sites), dtype=torch.float64)
        kriging = Kriging(self.kernel, sites, nothing, self.drift, self.noise, method="dense")
        return kriging.covariance(self.grid)

    def __repr__(self) -> str:
        kind = "fixed" if isinstance(self.cells, Tensor) else "random"
        return f"KrigedStart({self.kernel!r}, {self.grid}, {self.count} {kind} cells)"


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, start: KrigedStart, fields: Tensor, seed: int) -> None:
        self.start, self.fields, self.seed = start, fields, seed

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        x1, x0 = self.start.pair(self.fields[index : index + 1], generator=generator)
        return x1[0], x0[0]
