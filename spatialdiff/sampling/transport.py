r"""The exact Wasserstein-2 error of a sampler on Gaussian data, without sampling.

For data :math:`N(\mu, C)` with C and Γ diagonal in one basis, every linear solver is affine in its white
draws ``z_1, z_2, …`` (the start, and one for every noisy step), mode by mode: the output is
:math:`\hat\mu + \sum_j \sum_a T_{ja,k} z_{ja,k}`, a over the K variables of the state. So the output is
Gaussian with

.. math:: \hat c_k = \sum_{ja} T_{ja,k}^2, \qquad
          W_2^2 = |\hat\mu - \mu|^2 + \sum_k w_k \big(\sqrt{\hat c_k} - \sqrt{c_k}\big)^2,

:math:`w_k` the number of orthonormal modes that coefficient k stands for (Pierret & Galerne,
arXiv 2405.14250, for white noise and K = 1). The transfer coefficients T are the responses of the solver's
own code to unit draws, one per row of a batch, with the modes side by side (``modal``); the mean is its
response to none, on the domain itself. Where the basis is not orthonormal (correlated channels, dense
covariances) the distance is that of Bures,
:math:`\mathrm{tr}\,C + \mathrm{tr}\,\hat C - 2\,\lVert C^{1/2}\hat C^{1/2}\rVert_*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import joint_spectrum
from spatialdiff.covariance.basis import Basis, ChannelBasis
from spatialdiff.denoisers.resolve import data_law, resolve_channels, resolve_law
from spatialdiff.processes import Law
from spatialdiff.sampling.base import Noise
from spatialdiff.sampling.grids import time_grid
from spatialdiff.sampling.known_spectrum import SpectralDenoiser, given_spectrum
from spatialdiff.sampling.modal import DiagonalCovariance, ModalProblem, follow, zeros
from spatialdiff.sampling.sample import SOLVERS


@dataclass(frozen=True)
class TransportError:
    """How far a sampler's output is from its Gaussian data.

    Attributes:
        error: the Wasserstein-2 distance, in the units of the data (a norm over all sites and channels).
        relative: ``error`` over ``√tr C``, the root mean square norm of a centred field.
        mean_error: ``|μ̂ - μ|``, the part of the mean.
        per_mode: ``w_k (√ĉ_k - √c_k)²`` ``(*modes)`` or ``(C, *modes)``, whose sum is
            ``error² - mean_error²`` (for ``C`` channels alike, 1/C of it); None where modes are not
            orthogonal.
        output, data: ``ĉ_k`` and ``c_k``, the variance of each mode of the output and of the data.
        times: the times of the steps, ``(steps + 1,)``.
        basis: of the modes.
    """

    error: float
    relative: float
    mean_error: float
    per_mode: Tensor | None
    output: Tensor
    data: Tensor
    times: Tensor
    basis: Basis


@torch.no_grad()
def gaussian_transport_error(
    process: Any,
    solver: str,
    steps: int,
    data_spectrum: Any,
    *,
    grid: str | Tensor = "log_snr",
    coupling: Any = None,
    channels: int | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    **options: Any,
) -> TransportError:
    r"""The exact Wasserstein-2 error of ``steps`` steps of a linear sampler on Gaussian data.

    ``W₂² = |μ̂ - μ|² + Σ_k w_k (√ĉ_k - √c_k)²``, with the exact posterior mean in place of a network.

    Args:
        process: a noise process, or a bridge with a Gaussian or fixed start (then ``coupling`` is needed).
        solver: a name, as for ``sd.sample``; its ``options`` follow (``data=`` of the Gaussian solvers is
            what they believe of the data, by default the truth).
        steps: number of steps.
        data_spectrum: the law of the data: a ``Covariance``, a pair ``(mean, Covariance)``, the result of
            ``sd.fit``, or the eigenvalues c_k in the basis of Γ, ``(*modes)`` or ``(C, *modes)``.
        grid: a time grid or the times themselves, as for ``sd.sample``.
        coupling: of a bridge. channels: C, where neither covariance says. sigma_min, sigma_max: of the grid.

    Raises:
        ValueError: a solver that is not linear in its state (adaptive steps, steps scaled by norms), no
            common basis of Γ and the data, eigenvalues of another shape, a paired bridge.

    Source: Pierret & Galerne, arXiv 2405.14250, for white noise and one variable.
    """
    problem = TransportProblem.of(process, data_spectrum, coupling=coupling, channels=channels)
    modal, own = problem.modal, problem.options(options)
    start = modal.solver(solver, own).start_time
    if isinstance(grid, str) and grid == "optimised":
        from spatialdiff.sampling.optimised import optimised_times

        times = optimised_times(problem, solver, steps, options)
    else:
        times = time_grid(
            problem.law,
            steps,
            grid,
            start=start,
            model=problem.field.gaussian,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
        )
    modal.check_linear(solver, times, own)
    output = modal.output(solver, times, own)
    mean_square = problem.mean_square(solver, times, options)
    total, per_mode = problem.distance(output)
    error = float((total + mean_square).clamp(min=0.0).sqrt())
    return TransportError(
        error=error,
        relative=error / float(problem.trace.sqrt()),
        mean_error=float(mean_square.sqrt()),
        per_mode=per_mode,
        output=output,
        data=problem.data,
        times=times,
        basis=problem.basis,
    )


class TransportProblem:
    """A law and Gaussian data, on the domain and in the modes of both.

    Args:
        law: the law of the state given the data.
        spectrum: the basis, γ_k and c_k.
        mean: of the data. channels: C.
    """

    def __init__(
        self,
        law: Law,
        spectrum: tuple[Basis, Tensor, Tensor],
        mean: Tensor | float | None,
        channels: int,
    ) -> None:
        if not law.closed_form:
            raise ValueError(
                "a paired bridge starts from given fields, so that its output has no law of its own; give "
                "coupling='independent' or 'fixed'"
            )
        self.law, self.mean, self.channels = law, mean, channels
        self.basis = spectrum[0]
        flat = torch.ones(self.basis.modes, dtype=torch.float64)
        gamma, self.data, _ = torch.broadcast_tensors(
            spectrum[1].detach().double(), spectrum[2].detach().double(), flat
        )
        own = self.data.shape[0] if self.data.ndim > len(self.basis.modes) else None
        if own not in (None, channels):
            raise ValueError(f"eigenvalues of {own} channels for fields of {channels}")
        self.copies = channels if own is None else 1
        self.modal = ModalProblem(law, self.basis.weights, gamma, self.data, self.amplitudes())
        self.field = SpectralDenoiser(law, channels, (self.basis, gamma, self.data), mean)

    @classmethod
    def of(
        cls, process: Any, data: Any, *, coupling: Any = None, channels: int | None = None
    ) -> TransportProblem:
        """The problem of a process (and coupling) and data; see ``gaussian_transport_error``."""
        law = resolve_law(process, coupling)
        gamma = law.covariance
        if isinstance(data, Tensor):
            spectrum = given_spectrum(law, data)
            own = data.shape[0] if data.ndim > len(spectrum[0].modes) else None
            return cls(law, spectrum, None, resolve_channels(gamma, None, None, channels or own))
        mean, covariance = data_law(data)
        known = resolve_channels(gamma, covariance, mean, channels)
        return cls(law, joint_spectrum(gamma, covariance), mean, known)

    @property
    def trace(self) -> Tensor:
        """tr C, over all sites and channels."""
        if self.basis.orthonormal:
            total: Tensor = (self.basis.weights * self.data).sum()
        else:
            total = (self.factor(self.data).square().sum((-2, -1)) * self.weights).sum()
        return self.copies * total

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a solver on the modes: what it believes of the data, in them (its mean matters to the
        mean of the output alone).
        """
        found = dict(options)
        if found.get("data") is None:
            return found
        basis, _, values = joint_spectrum(self.law.covariance, data_law(found["data"])[1])
        if basis != self.basis:
            raise ValueError(
                f"data= of the solver is diagonal in {basis!r}, the data in {self.basis!r}; give both one "
                "structure"
            )
        values = values.detach().double().expand(self.data.shape)
        return {**found, "data": DiagonalCovariance(self.modal.sites, values)}

    def amplitudes(self) -> Tensor | None:
        """``√w_k |μ_k|`` ``(C, *modes)`` in an orthonormal basis; None without a mean."""
        if self.mean is None or not self.basis.orthonormal:
            return None
        mean = torch.as_tensor(self.mean, dtype=torch.float64)
        field = mean.expand(self.channels, *self.law.covariance.domain.shape)
        return self.basis.weights.sqrt() * self.basis.analyze(field).abs()

    def mean_in_modes(self, options: Mapping[str, Any]) -> bool:
        """Whether modes carry the mean one by one: not with an offset of the law, nor for a solver that
        believes in a mean, nor in a basis that is not orthonormal.
        """
        ends = (self.law.start_time, 0.5 * (self.law.start_time + self.law.end_time))
        moved = any(bool(self.law.offset(time).any()) for time in ends)
        believed = options.get("data") is not None and data_law(options["data"])[0] is not None
        return not moved and not believed and (self.mean is None or self.basis.orthonormal)

    def mean_square(self, solver: str, times: Tensor, options: Mapping[str, Any]) -> Tensor:
        """``|μ̂ - μ|²``, differentiable in ``times``: in the modes, or by a run on the domain itself."""
        if self.mean_in_modes(options):
            return self.modal.mean_square(solver, times, self.options(options))
        draws = Noise(self.law, 1, self.channels, white=zeros)
        reached = follow(SOLVERS[solver](self.field, draws, {}, **options), times)[0]
        mean = torch.zeros_like(reached) if self.mean is None else torch.as_tensor(self.mean).to(reached)
        return (reached - mean).square().sum()

    @property
    def weights(self) -> Tensor:
        """Multiplicities for the matrices of ``factor``: those of the spatial modes, or 1."""
        if isinstance(self.basis, ChannelBasis):
            return self.basis.weights
        return torch.ones((), dtype=torch.float64)

    def factor(self, values: Tensor) -> Tensor:
        """``F √values`` as matrices: ``(*modes, C, C)`` for correlated channels, else ``(N, N)``."""
        roots = values.clamp(min=0.0).sqrt()
        basis = self.basis
        if isinstance(basis, ChannelBasis):
            channels = len(basis.factor)
            per_mode = roots.expand(channels, *basis.modes).movedim(0, -1)
            return basis.factor.to(roots) * per_mode[..., None, :]
        columns = torch.eye(values.numel(), dtype=torch.float64).reshape(-1, *values.shape)
        return (basis.synthesize(columns * roots)).reshape(values.numel(), -1).mT

    def distance(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Squared W₂ of the centred laws, and its parts per mode where the modes are orthogonal."""
        if self.basis.orthonormal:
            parts = self.modal.parts(output)
            return self.copies * parts.sum(), parts
        got, wanted = self.factor(output), self.factor(self.data)
        overlap = torch.linalg.svdvals(wanted.mT @ got).sum(-1)
        parts = got.square().sum((-2, -1)) + wanted.square().sum((-2, -1)) - 2.0 * overlap
        parts = self.weights * parts.clamp(min=0.0)
        return self.copies * parts.sum(), parts if isinstance(self.basis, ChannelBasis) else None
