"""What every solver shares: where its noise comes from, and one step from `t` to `s`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.processes import Law

White = Callable[[tuple[int, ...]], Tensor] | Iterable[Tensor]


class Noise:
    """Every random number of a sampler: white draws `z`, one per call, coloured to `η = R z` by Γ.

    `white` replaces the draws: a function of the shape, or an iterable of tensors in the order in which they
    are used (the initial state first).
    """

    def __init__(
        self,
        law: Law,
        fields: int,
        channels: int,
        *,
        generator: torch.Generator | None = None,
        white: White | None = None,
    ) -> None:
        self.law = law
        self.fields = fields
        self.channels = channels
        self.generator = generator
        self.white: Callable[[tuple[int, ...]], Tensor] | None = None
        self.given: Iterator[Tensor] | None = None
        if callable(white):
            self.white = white
        elif white is not None:
            self.given = iter(white)
        self.used = 0

    def draw_white(self) -> Tensor:
        """`z`, shape `(n, C, *factor_shape)`, or `(n, *factor_shape)` where Γ has the channels itself."""
        covariance = self.law.covariance
        inner = () if covariance.channels is not None else (self.channels,)
        shape = (self.fields, *inner, *covariance.factor_shape)
        self.used += 1
        if self.white is not None:
            return self.white(shape)
        if self.given is not None:
            try:
                return next(self.given)
            except StopIteration:
                raise ValueError(
                    f"noise= holds {self.used - 1} white draws and the sampler needs more: one for the "
                    f"initial state and "
                    f"one per noisy step, each of shape {shape}"
                ) from None
        return torch.randn(shape, generator=self.generator, dtype=covariance.dtype, device=covariance.device)

    def __call__(self) -> Tensor:
        """`η = R z ~ N(0, Γ)`, shape `(n, C, *grid)`."""
        return self.law.draw(self.fields, self.channels, white=self.draw_white())


class Solver(ABC):
    """One way to get from the state at `t` to the state at `s`, closer to the data.

    Subclasses state their `order` of convergence (in law for the stochastic ones) in the largest step.

    Attributes:
        order: the order of convergence.
        deterministic: True where only the initial state is random; such a solver needs a probability flow.
    """

    order: int
    deterministic: ClassVar[bool] = False

    def __init__(self, denoiser: PosteriorMean, noise: Noise, condition: Mapping[str, Any]) -> None:
        self.denoiser = denoiser
        self.noise = noise
        self.condition = dict(condition)
        self.law = denoiser.conditional_law(**self.condition)
        if self.deterministic and not self.law.deterministic_flow:
            raise RuntimeError(
                f"solver {type(self).__name__} follows a probability flow, and a bridge that starts from a "
                f"point has none: "
                "only noise leads away from it. Use solver='bridge', 'gaussian_sde' or 'euler_maruyama', or "
                "coupling='independent'"
            )

    @property
    def start_time(self) -> float:
        """Where this solver starts."""
        return self.law.start_time

    def start(self) -> Tensor:
        """The initial state, coloured, shape `(n, C, *grid)`."""
        return self.law.start(
            self.noise.fields, self.noise.channels, time=self.start_time, white=self.noise.draw_white()
        )

    def data(self, u: Tensor, t: Tensor) -> Tensor:
        """`E[x | u_t = u]`."""
        mean: Tensor = self.denoiser(u, t, **self.condition)
        return mean

    def offset(self, t: Tensor, u: Tensor) -> Tensor:
        """`o_t` in the dtype of `u`."""
        return self.law.offset(t).to(u)

    @abstractmethod
    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The state at `s`, from the state `u` at `t`; both times are float64 scalars, `s` not the end."""

    def finish(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The last step, to the end: the posterior mean, unless the solver can do better."""
        return self.data(u, t)
