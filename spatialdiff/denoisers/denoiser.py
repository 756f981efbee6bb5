r"""A network made into the posterior mean: `D(u, t) = decode(network(encode(u, t)))`.

Prediction types are in `predictions`, scalings in `preconditioning`; both are exact changes of variables, so
for every choice the best network gives the same `D(u, t) = E[x | u_t = u]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.covariance import Covariance
from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.denoisers.preconditioning import (
    PRECONDITIONINGS,
    GaussianResidual,
    PixelModel,
    Preconditioning,
    Unscaled,
    check_residual,
    resolve_tint,
    sigma_data,
)
from spatialdiff.denoisers.predictions import check_prediction, warn_of_division
from spatialdiff.denoisers.resolve import data_law, resolve_channels, resolve_law
from spatialdiff.processes import Coupling, Law, NoiseProcess, Pinned, as_coupling, started_law


class Denoiser(PosteriorMean):
    r"""The posterior mean `E[x | u_t]` of the data endpoint, from a network.

    Args:
        network: called as `network(state, t, **condition)` with state `(B, K*C, *grid)` and time `(B,)`;
            returns `(B, C, *grid)`, for `"variable_noise"` `(B, K*C, *grid)`. Its time input is `t` with
            `"none"`, `log(σ/α)/4` otherwise.
        process: a `NoiseProcess`, or a `Bridge` or `LinearBridge` (whose coupling is given here or by
            `BridgeMixture`).
        prediction: `"data"`, `"noise"` (the coloured η), `"white_noise"` (z of η = R z; square R only),
            `"velocity"`, for K > 1 those of the sufficient statistic; or `"variable_noise"`, the coloured
            noise of each variable (with preconditioning `"none"`). The noises divide by α: warned of where a
            mode loses its signal early.
        preconditioning: `"none"`, `"edm"`, or `"wiener"` (residual to the Gaussian posterior mean of `data`).
        data: the fitted law of the data: the result of `sd.fit`, a pair `(mean, Covariance)`, or a
            `Covariance`. Gives the mean and standard deviation of `"edm"`, which are 0 and 1 without it;
            without it `"wiener"` takes the data to be `N(0, Γ)`, as they are where Γ was fitted to
            centred data (for any other Γ give it).
        coupling: for a bridge, how its start is drawn.
        condition_on_start: for a bridge between pairs, whether the network is shown the start, as the
            argument `start`.
        tint: of `"wiener"`: what the network sees has the spectrum `c^{2 tint}`, 0 for white, 1/2 for the
            data's own; 1/4 unless given, 0 where Γ and the data's covariance share no orthonormal basis.
        channels: number of channels `C`, where neither Γ nor `data` says; 1 if nothing does.

    Raises:
        ValueError: unknown prediction or preconditioning, `"wiener"` where Γ and the data share no basis,
            `"white_noise"` with a Γ whose factor is not square, channel counts or couplings that contradict
            each other.

    Sources: docs/theory, "Denoising"; Karras et al. 2022 (arXiv 2206.00364) for `"edm"`.
    """

    def __init__(
        self,
        network: nn.Module,
        process: NoiseProcess | Pinned | Law,
        prediction: str = "data",
        preconditioning: str = "none",
        *,
        data: Any = None,
        coupling: Coupling | str | None = None,
        condition_on_start: bool = False,
        tint: float | None = None,
        channels: int | None = None,
    ) -> None:
        if tint is not None and preconditioning != "wiener":
            raise ValueError(
                f"tint belongs to preconditioning='wiener'; given with preconditioning={preconditioning!r}"
            )
        check_prediction(prediction, process.covariance)
        if prediction == "variable_noise" and preconditioning != "none":
            raise ValueError(
                f"prediction='variable_noise' goes with preconditioning='none', given {preconditioning!r}: a "
                "residual to the Gaussian posterior mean has the channels of the data"
            )
        if data is None and preconditioning == "wiener":
            data = process.covariance
        mean, covariance = (None, None) if data is None else data_law(data)
        super().__init__(resolve_channels(process.covariance, covariance, mean, channels))
        self.network = network
        self.process = process
        self.prediction = prediction
        self.preconditioning = preconditioning
        self.gaussian: GaussianModel | None = None
        if covariance is not None:
            self.gaussian = GaussianModel(process.covariance, covariance, mean)
            if preconditioning == "wiener":
                # fails here, not in the first step, where Γ and C share no basis
                check_residual(self.gaussian)
        self.scaling = self.make_scaling(mean, None if covariance is None else sigma_data(covariance), tint)
        self.coupling: Coupling | None = None
        self.condition_on_start = False
        self._law: tuple[Law] | None = None  # a tuple, so that Γ is not registered twice
        if coupling is not None:
            self.bind(coupling, condition_on_start=condition_on_start)
        elif not isinstance(process, Pinned):
            self._law = (resolve_law(process),)
            if preconditioning == "none":
                warn_of_division(prediction, self._law[0])

    def make_scaling(
        self, mean: Tensor | float | None, deviation: Tensor | None, tint: float | None
    ) -> Preconditioning:
        if self.preconditioning == "none":
            return Unscaled(self.prediction)
        if self.preconditioning == "edm":
            unit = torch.ones((), dtype=torch.float64)
            self.pixels = PixelModel(self.process.covariance, unit if deviation is None else deviation, mean)
            return GaussianResidual(self.pixels, self.prediction)
        if self.preconditioning == "wiener":
            assert self.gaussian is not None
            return GaussianResidual(self.gaussian, self.prediction, resolve_tint(self.gaussian, tint))
        raise ValueError(
            f"unknown preconditioning {self.preconditioning!r}; the choices are {', '.join(PRECONDITIONINGS)}"
        )

    def bind(self, coupling: Coupling | str, *, condition_on_start: bool = False) -> Denoiser:
        """Say how a bridge's start is drawn, which fixes the law of its state; returns `self`.

        Args:
            coupling: a coupling, or its name.
            condition_on_start: with `Paired`, whether the network is shown the start, as the keyword argument
                `start`.

        Raises:
            ValueError: the process is not a bridge, another coupling is bound already, or the start is not of
                a pair.
        """
        coupling = as_coupling(coupling)
        if self.coupling is not None and not same(self.coupling, coupling):
            raise ValueError(
                f"this denoiser is bound to {self.coupling!r} and cannot be used with {coupling!r} as well; "
                f"build another"
            )
        if condition_on_start and not coupling.needs_initial:
            raise ValueError(f"condition_on_start=True needs pairs (coupling='paired'), not {coupling!r}")
        law = resolve_law(self.process, coupling)
        self.condition_on_start = condition_on_start or self.condition_on_start
        if not law.closed_form and not self.condition_on_start:
            self.check_pairs()
        self._law = (law,)
        self.coupling = coupling
        return self

    def check_pairs(self) -> None:
        if self.prediction != "data" or self.preconditioning != "none":
            raise ValueError(
                f"prediction={self.prediction!r} with preconditioning={self.preconditioning!r} needs the "
                f"law of the state given "
                "the data, which for coupling='paired' is known only given the start too: use "
                "condition_on_start=True, or "
                "prediction='data' with preconditioning='none'"
            )

    @property
    def covariance(self) -> Covariance:
        return self.process.covariance

    @property
    def law(self) -> Law:
        """The law of the state given the data; raises `RuntimeError` for a bridge whose coupling is not
        known yet.
        """
        return resolve_law(self.process) if self._law is None else self._law[0]

    def conditional_law(self, **condition: Any) -> Law:
        """The law given the data and, where the network is shown it, the `start` of the bridge.

        Raises:
            ValueError: `condition_on_start` without a `start`.
        """
        if not self.condition_on_start or not isinstance(self.process, Pinned):
            return self.law
        start = condition.get("start")
        if start is None:
            raise ValueError(
                "this denoiser is conditioned on the start of the bridge: pass start=, shape (B, C, *grid)"
            )
        return started_law(self.process, start)

    def predict(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """What the network returns at state `u` and time `t`, before it is turned into the posterior mean."""
        t = self.times(u, t)
        state, time = self.scaling.encode(u, self.conditional_law(**condition), t)
        output: Tensor = self.network(state, time.to(u.dtype).expand(len(u)), **condition)
        channels = self.channels * (self.variables if self.prediction == "variable_noise" else 1)
        if output.shape != (len(u), channels, *u.shape[2:]):
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(u.shape)}; "
                f"it must return {channels} channel(s) on the same grid"
            )
        return output

    def target(self, x: Tensor, noise: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """What the network should return at `u = φ ⊗ x + (L ⊗ I) η + o`.

        Args:
            x: data `(B, C, *grid)`; noise: the coloured `η` `(B, K*C, *grid)`, as `perturb` returns it, or,
                but for `"variable_noise"`, the `η̄` `(B, C, *grid)` of its statistic.
        """
        law = self.conditional_law(**condition)
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        if self.prediction != "variable_noise" and noise.shape[1] != x.shape[1]:
            noise = law.reduce_noise(noise, t)
        return self.scaling.target(x, noise, law, t)

    def decode(self, output: Tensor, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """The posterior mean that the network's `output` at `(u, t)` stands for."""
        return self.scaling.decode(output, u, self.conditional_law(**condition), self.times(u, t))

    @property
    def variables(self) -> int:
        """K, the variables per site."""
        return self.process.variables

    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`E[x | u_t = u]`: state `(B, K*C, *grid)`, times `(B,)` or `()`; result `(B, C, *grid)`."""
        # one tensor of times, so that a process computes its coefficients once
        t = self.times(u, t)
        return self.decode(self.predict(u, t, **condition), u, t, **condition)


def same(a: Coupling, b: Coupling) -> bool:
    """Whether two couplings are of one kind with equal parameters."""
    return type(a) is type(b) and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(vars(b)[name])) for name, value in vars(a).items()
    )
