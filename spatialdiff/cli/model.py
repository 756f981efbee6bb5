"""From a configuration to a denoiser, the same way for training and for sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import nn

from spatialdiff.cli.files import Setting
from spatialdiff.cli.objects import Basis, basis_of, diagonal, noise_covariance
from spatialdiff.covariance import Covariance
from spatialdiff.denoisers import Denoiser
from spatialdiff.domains import Grid
from spatialdiff.fitting import FitResult
from spatialdiff.processes import NoiseProcess, Pinned
from spatialdiff.processes.base import Dynamics

ProcessOf = Callable[[Covariance], Dynamics]
NetworkOf = Callable[[int, Grid], nn.Module]
ObjectiveOf = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class ModelConfig:
    """The parts of a model that a configuration names.

    Args:
        noise: Γ: "fit" (that of the fit), "white", or a kernel by class path; a list is a sum.
        noise_method: structure of Γ for a kernel; "auto" is the torus on periodic grids, else the cosine
            basis.
        process: noise process or bridge by class path, called with Γ.
        network: by class path, called with the number of channels of the state, the grid and, where it
            returns fewer, `out_channels`.
        objective: by class path, called with the denoiser.
        prediction: data, noise, white_noise, velocity or variable_noise.
        preconditioning: none, edm or wiener.
    """

    noise: str | Kernel | list[Kernel]
    noise_method: str
    process: ProcessOf
    network: NetworkOf
    objective: ObjectiveOf
    prediction: str
    preconditioning: str

    def build(self, fit: FitResult | None, setting: Setting, seed: int) -> nn.Module:
        """The objective, with the denoiser inside; the network's first weights come from `seed`.

        Raises:
            ValueError: parts that do not go together, each with its message.
        """
        grid, channels = setting.grid, setting.channels
        method = self.noise_method
        basis: Basis = "auto"
        if method == "auto":
            method = basis_of(grid, basis)
        gamma = noise_covariance(self.noise, fit, grid, method)
        law = None if fit is None else (fit.mean, diagonal(fit, grid, basis_of(grid, basis)))
        process = self.process(gamma.float())
        if not isinstance(process, NoiseProcess | Pinned):
            raise TypeError(f"process must be a noise process or a bridge, got {type(process).__name__}.")
        torch.manual_seed(seed)
        denoiser = Denoiser(
            self.make_network(channels, process.variables, grid),
            process,
            prediction=self.prediction,
            preconditioning=self.preconditioning,
            data=law,
            channels=channels,
        )
        return self.objective(denoiser)

    def make_network(self, channels: int, variables: int, grid: Grid) -> nn.Module:
        """The network for fields of C `channels` and a process of K `variables`: K*C channels in, C out, or
        K*C for the noise of each variable.

        Raises:
            TypeError: a network of K > 1 variables that takes no `out_channels`.
        """
        seen = channels * variables
        returned = seen if self.prediction == "variable_noise" else channels
        if returned == seen:
            return self.network(seen, grid)
        try:
            network: Callable[..., nn.Module] = self.network
            return network(seen, grid, out_channels=returned)
        except TypeError as error:
            if "out_channels" not in str(error):
                raise
            raise TypeError(
                f"with {variables} variables the network is given {seen} channels and returns {returned}: it "
                f"needs an argument out_channels ({error})."
            ) from error
