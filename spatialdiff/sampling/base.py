r"""What every solver shares: where its noise comes from, one step from `t` to `s`, and the way through all of
them.

A step is built from the data's posterior mean `D(u, t)` and matrices that act on the K variables of the
state `(B, K*C, *grid)`, one for all modes of Γ or one for each (`processes.law`). The last step arrives at
the data: the data variable is `D`, the auxiliary ones are their mean given `D`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.processes import Law
from spatialdiff.processes.moments import lower, psd_root

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
        """`z` for all K variables, of the shape `law.white_shape`."""
        covariance = self.law.covariance
        shape = self.law.white_shape(self.fields, self.channels)
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
        """`η = (I ⊗ R) z ~ N(0, I ⊗ Γ)`, shape `(n, K*C, *grid)`."""
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
        """The initial state, coloured, shape `(n, K*C, *grid)`."""
        return self.law.start(
            self.noise.fields, self.noise.channels, time=self.start_time, white=self.noise.draw_white()
        )

    def data(self, u: Tensor, t: Tensor) -> Tensor:
        """`E[x | u_t = u]`, `(n, C, *grid)`."""
        mean: Tensor = self.denoiser(u, t, **self.condition)
        return mean

    def offset(self, t: Tensor, u: Tensor) -> Tensor:
        """`o_t` in the dtype of `u`."""
        return self.law.offset(t).to(u)

    def mix(self, matrix: Tensor, field: Tensor) -> Tensor:
        """`(M ⊗ I) u`, M `([modes], I, J)`."""
        return self.law.mix(matrix, field)

    def spread(self, vector: Tensor, field: Tensor) -> Tensor:
        """`b ⊗ x`, b `([modes], K)`: `(n, C, *grid)` to `(n, K*C, *grid)`."""
        return self.law.mix(vector[..., None], field)

    @abstractmethod
    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The state at `s`, from the state `u` at `t`; both times are float64 scalars, `s` not the end."""

    def finish(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The last step, to the end: the posterior mean, unless the solver can do better."""
        return self.arrive(u, self.data(u, t), t, s)

    def arrive(self, u: Tensor, data: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The state at the end `s`: `data`, and for K > 1 the mean of the auxiliary variables given them."""
        if self.law.variables == 1:
            return data
        keep, pull, _ = self.law.posterior(t, s)
        rest = self.mix(keep[..., 1:, :], u) + self.spread(pull[..., 1:], data)
        return torch.cat([data, rest], dim=1)

    def path(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        """The states at `times[1:]`, one after the other, from the state `u` at `times[0]`."""
        last = len(times) - 2
        for i in range(len(times) - 1):
            u = (self.finish if i == last else self.step)(u, times[i], times[i + 1])
            yield u


def noise_root(variance: Tensor) -> Tensor:
    """Lower L ``(…, K, K)`` with ``L Lᵀ = V``, V positive semi-definite, singular or nearly so included.

    The Cholesky factor, which depends on V continuously as eigenvectors do not, by QR of a root that is
    exact to 1e-16 of each variable's own variance.
    """
    root = psd_root(variance)
    return root if variance.requires_grad else lower(root)


def run(method: Solver, times: Tensor, start: Tensor) -> list[Tensor]:
    """All states of a solver at `times` `(T,)`, from the initial states `start` `(n, K*C, *grid)` on.

    Differentiable, but for `"adaptive"`: in the times, the start, the denoiser and the law.
    """
    return [start, *method.path(times, start)]
