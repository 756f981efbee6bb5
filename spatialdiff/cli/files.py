"""Files that pass from one command to the next: a fit, what the data were, generated fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.cli.objects import grid_config
from spatialdiff.domains import Grid
from spatialdiff.fitting import FitResult
from spatialdiff.runs import RunFolder

if TYPE_CHECKING:
    from spatialdiff.data import FieldData


@dataclass(frozen=True)
class Setting:
    """What a model was fitted to or trained on, less the fields themselves.

    Args:
        grid: where the fields live.
        channels: their number of channels.
        name: of the data.
        units: of the data before standardisation.
        mean, std: of the standardisation, per channel.
    """

    grid: Grid
    channels: int
    name: str
    units: str
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, data: FieldData) -> Setting:
        """The setting of a data source."""
        scale = data.standardisation
        return cls(
            data.grid,
            int(data.train.shape[1]),
            data.name,
            data.units,
            torch.as_tensor(scale.mean).double().reshape(-1).tolist(),
            torch.as_tensor(scale.std).double().reshape(-1).tolist(),
        )

    def write(self, run: RunFolder) -> None:
        """Write it as `data.json`."""
        plain: dict[str, Any] = {**vars(self), "grid": grid_config(self.grid)}
        run.write_json("data.json", plain)

    @classmethod
    def read(cls, run: RunFolder) -> Setting:
        """Read `data.json`."""
        plain = run.read_json("data.json")
        return cls(**{**plain, "grid": Grid(**plain["grid"])})

    def physical(self, fields: Tensor) -> Tensor:
        """Standardised fields `(N, C, *grid)` in the units of the data."""
        shape = (-1, *(1,) * self.grid.ndim)
        mean = torch.tensor(self.mean, dtype=torch.float64).reshape(shape)
        std = torch.tensor(self.std, dtype=torch.float64).reshape(shape)
        return (fields.double() * std + mean).to(fields.dtype)


@dataclass(frozen=True)
class SavedFit:
    """A fit and the setting it was made in."""

    fit: FitResult
    setting: Setting

    @property
    def grid(self) -> Grid:
        """Where the fitted fields live."""
        return self.setting.grid


def write_fit(run: RunFolder, fit: FitResult, setting: Setting) -> None:
    """Write `fit.pt` and `data.json`."""
    run.write_tensors("fit.pt", fit.state_dict())
    setting.write(run)


def read_fit(folder: str | Path) -> SavedFit:
    """Read what `spatialdiff fit` or `spatialdiff train` left in a run folder.

    Raises:
        FileNotFoundError: the folder holds no fit.
    """
    run = RunFolder.open(folder, "fit.pt", "data.json")
    return SavedFit(FitResult.from_state(torch.load(run / "fit.pt", weights_only=True)), Setting.read(run))


def write_fields(run: RunFolder, fields: Tensor, setting: Setting | None = None) -> Path:
    """Write `fields.npz`: `fields`, and `physical` in the units of the data where they are known."""
    arrays = {"fields": fields.detach().cpu()}
    if setting is not None:
        arrays["physical"] = setting.physical(arrays["fields"])
    return run.write_arrays("fields.npz", **arrays)


def read_fields(path: str | Path) -> Tensor:
    """The standardised fields `(N, C, *grid)` of a `fields.npz`, or of the run folder that holds one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file holds no array `fields`.
    """
    path = Path(path)
    file = path / "fields.npz" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"There are no generated fields at {file}: give a fields.npz, or the folder of a sample run."
        )
    with np.load(file, allow_pickle=False) as arrays:
        if "fields" not in arrays:
            raise ValueError(
                f"{file} has no array 'fields'; it holds {', '.join(arrays.files) or 'nothing'}."
            )
        return torch.from_numpy(np.asarray(arrays["fields"]))
