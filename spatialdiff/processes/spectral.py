r"""Processes whose dynamics depend on the mode, through the eigenvalues λ_k of -Δ.

Where Γ is diagonal in a basis, ``Γ φ_k = γ_k φ_k``, a linear process whose drift and noise are functions of
the Laplacian is one K×K problem per mode,

.. math:: du_k = \beta\,A(\lambda_k)\,u_k\,dt + \sqrt{\beta\,\gamma_k}\,G(\lambda_k)^{1/2}\,dW_k.

The bases are those of a torus, of a grid with reflecting (Neumann) boundaries, of a sphere and of a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis, CosineBasis, FourierBasis
from spatialdiff.covariance.meshes.graph_basis import GraphBasis
from spatialdiff.covariance.spheres.sphere_basis import SphereBasis
from spatialdiff.domains import Graph, Grid
from spatialdiff.processes.linear import LinearDiffusion, Matrix
from spatialdiff.processes.matrices import check_matrices, default_schedule
from spatialdiff.processes.modes import check_basis, fast_basis
from spatialdiff.processes.paths import CosinePath, SignalPath
from spatialdiff.processes.schedules import BetaSchedule, LinearBeta
from spatialdiff.processes.signal import SignalProcess
from spatialdiff.processes.spectral_paths import DecayPath, FrequencyPath, HeatPath, SineBlur

#: a function of λ ``(*modes)``, or what it returns
Spectral = Callable[[Tensor], Tensor] | Matrix | float
#: modes that the default β is found from
SAMPLE = 64


def laplacian_eigenvalues(basis: Basis, *, discrete: bool = False) -> Tensor:
    r"""Eigenvalues λ_k ≥ 0 of -Δ in the modes of a basis, float64, shape ``basis.modes``.

    Torus and cosine: ``|2πf_k|²``, f in cycles per unit length, the Laplacian of the continuum; or, where
    ``discrete``, ``Σ_i (2/h_i)² sin²(π f_i h_i)``, that of the neighbours on the grid. Sphere of radius a:
    ``l(l+1)/a²``. Graph: of its Laplacian (combinatorial or normalised, as Γ's).

    Raises ``ValueError`` for a basis that is not one of a Laplacian, or ``discrete`` on a sphere.
    """
    if isinstance(basis, GraphBasis):
        return basis.eigenvalues
    if isinstance(basis, SphereBasis):
        if discrete:
            raise ValueError("discrete: a sphere has the Laplacian of the continuum only; leave it out")
        degrees = basis.degrees.double()
        return degrees * (degrees + 1.0) / basis.grid.radius**2
    if not isinstance(basis, FourierBasis | CosineBasis):
        raise ValueError(
            f"the modes of {basis!r} are not those of a Laplacian; build Γ with method='torus' on a periodic "
            "grid, 'cosine' on any other, 'graph' on a graph, on a sphere by SphereCovariance.from_spectrum"
        )
    if not discrete:
        return (2.0 * math.pi * basis.wavenumbers).square()
    total = torch.zeros((), dtype=torch.float64)
    for axis, (f, h) in enumerate(zip(basis._axis_frequencies(), basis.grid.spacing, strict=True)):
        value = (2.0 / h * torch.sin(math.pi * h * f)).square()
        total = total + value.reshape(-1, *(1,) * (basis.grid.ndim - 1 - axis))
    return total


def spectral_basis(gamma: Covariance, what: str, basis: Basis | None = None) -> Basis:
    """The basis of the Laplacian's modes in which Γ is diagonal, or ``basis`` if Γ is diagonal in it.

    White noise takes the Fourier basis of a grid whose axes are all periodic, the cosine basis of any other,
    the eigenvectors of a graph. Raises ``ValueError`` where there is none, ``TypeError`` for what is no
    Covariance.
    """
    if not isinstance(gamma, Covariance):
        raise TypeError(
            f"{what} needs one Covariance, got {type(gamma).__name__}; one for each variable is what "
            "LinearDiffusion, CLD, ALDA and MALDA take"
        )
    if basis is not None:
        return check_basis(gamma, basis, what)
    if not gamma.is_white:
        return fast_basis(gamma, what)
    domain = gamma.domain
    if isinstance(domain, Grid):
        return FourierBasis(domain) if all(domain.periodic) else CosineBasis(domain)
    if isinstance(domain, Graph):
        return GraphBasis(domain)
    raise ValueError(
        f"{what} needs the modes of a Laplacian, and white noise on {domain} is diagonal in no fast basis of "
        "them; use a grid or a graph, or on a sphere SphereCovariance.from_spectrum"
    )


def of_modes(name: str, value: Spectral, eigenvalues: Tensor) -> Tensor:
    """Matrices ``(*modes, K, K)`` or ``(K, K)`` of a function of λ, a matrix or a number.

    A function returns ``(*modes)`` (K = 1) or ``(*modes, K, K)``. Raises ``ValueError`` for other shapes.
    """
    found = torch.as_tensor(value(eigenvalues) if callable(value) else value, dtype=torch.float64)
    if found.ndim == 0:
        return found.reshape(1, 1)
    modes = tuple(eigenvalues.shape)
    if not callable(value):
        return found
    if tuple(found.shape) == modes:
        return found[..., None, None]
    if tuple(found.shape[:-2]) == modes and found.shape[-1] == found.shape[-2]:
        return found
    raise ValueError(
        f"{name} gave shape {tuple(found.shape)} for eigenvalues of shape {modes}; a function of the "
        f"eigenvalues returns {modes}, or (*{modes}, K, K)"
    )


class SpectralDiffusion(LinearDiffusion):
    r"""``du = β A(-Δ) u dt + √β G(-Δ)^{1/2} Γ^{1/2} dW``: any functions of the Laplacian's eigenvalues.

    Args:
        gamma: Γ, diagonal in the basis of the modes; or one covariance for each of K variables.
        drift: A: a function of λ ``(*modes)`` to ``(*modes)`` (K = 1) or ``(*modes, K, K)``; a number; or one
            matrix ``(K, K)`` for all modes.
        diffusion: G, in the same way.
        beta, initial: as for ``LinearDiffusion``.
        basis: the basis of the modes, by default Γ's own.
        discrete: take λ of the grid's neighbours; see ``laplacian_eigenvalues``.

    Attributes:
        eigenvalues: λ_k of -Δ, float64, shape ``basis.modes``.

    Raises:
        ValueError: a domain or Γ without a fast basis of a Laplacian; functions of another shape; and what
            ``LinearDiffusion`` raises.
    """

    def __init__(
        self,
        gamma: Covariance | Sequence[Covariance],
        drift: Spectral,
        diffusion: Spectral,
        *,
        beta: BetaSchedule | None = None,
        initial: Matrix | None = None,
        basis: Basis | None = None,
        discrete: bool = False,
    ) -> None:
        first = gamma if isinstance(gamma, Covariance) else gamma[0]
        found = spectral_basis(first, type(self).__name__, basis)
        eigenvalues = laplacian_eigenvalues(found, discrete=discrete)
        A, G = of_modes("drift", drift, eigenvalues), of_modes("diffusion", diffusion, eigenvalues)
        if A.shape[-1] == G.shape[-1] and max(A.ndim, G.ndim) == 2:
            A = A.expand(*found.modes, *A.shape[-2:])
        schedule = spectral_schedule(A, G) if beta is None else beta
        super().__init__(gamma, A, G, beta=schedule, initial=initial, basis=found)
        self._eigenvalues = eigenvalues

    @property
    def eigenvalues(self) -> Tensor:
        """λ_k of -Δ, float64, shape ``basis.modes``."""
        return self._eigenvalues


def spectral_schedule(A: Tensor, G: Tensor) -> BetaSchedule:
    """``default_schedule`` of at most ``SAMPLE`` modes, from the slowest to the fastest."""
    drift, diffusion = check_matrices(A, G)
    shape = torch.broadcast_shapes(drift.shape, diffusion.shape)
    drift, diffusion = (v.expand(shape).reshape(-1, *shape[-2:]) for v in (drift, diffusion))
    order = torch.linalg.eigvals(drift).real.amax(-1).argsort(descending=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(SAMPLE, len(order))).round().long()]
    return default_schedule(drift[chosen], diffusion[chosen])


class StochasticHeat(SignalProcess):
    """The stochastic heat equation ``du = β (κΔ - θ) u dt + √β Γ^{1/2} dW``: data blur while noise enters.

    Mode k: ``A = -(κλ_k + θ)``, ``G = 1``; stationary variance ``γ_k/(2(κλ_k + θ))``. With κ = 0 Brownian
    motion (θ = 0) or an Ornstein–Uhlenbeck process. (Da Prato & Zabczyk 2014, chapter 5.)

    Args:
        gamma: Γ, diagonal in the basis of a Laplacian.
        diffusivity: κ ≥ 0, in squared units of length per unit of B(t).
        damping: θ ≥ 0. With 0 the mean of the field is a Brownian motion, and β is 1 on [0, 1] by default.
        beta, basis, discrete: see ``SpectralDiffusion``.

    Raises:
        ValueError: negative numbers; and what ``SpectralDiffusion`` raises.
    """

    def __init__(
        self,
        gamma: Covariance,
        diffusivity: float,
        damping: float = 0.0,
        *,
        beta: BetaSchedule | None = None,
        basis: Basis | None = None,
        discrete: bool = False,
    ) -> None:
        for name, value in (("diffusivity", diffusivity), ("damping", damping)):
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} was {value!r}; it must be finite and not negative")
        found = spectral_basis(gamma, type(self).__name__, basis)
        decay = diffusivity * laplacian_eigenvalues(found, discrete=discrete) + damping
        one = torch.ones(1, 1, dtype=torch.float64)
        schedule = spectral_schedule(-decay[..., None, None], one) if beta is None else beta
        super().__init__(gamma, DecayPath(schedule, decay, found))
        self.diffusivity, self.damping = float(diffusivity), float(damping)

    @property
    def stationary(self) -> Tensor | None:
        """``1/(2θ_k)`` ``(*modes, 1, 1)``; None where the mean of the field is not damped."""
        decay = cast(DecayPath, self.schedule).table
        return None if float(decay.min()) == 0.0 else 0.5 / decay[..., None, None]


class HeatDissipation(SignalProcess):
    r"""Blurring diffusion: the signal of a scalar process, blurred by the heat equation on the way to noise.

    ``α_k = a(t) [(1-m) e^{-λ_k τ(t)} + m]``, ``σ_k = σ(t)`` (Hoogeboom & Salimans 2023, arXiv 2209.05557,
    equations 11 to 16; a = 1 and σ constant is Rissanen et al. 2022, arXiv 2206.13397).

    Args:
        gamma: Γ, diagonal in the basis of a Laplacian.
        blur: width of the blur at the end, in units of length (``τ = ½ w² sin⁴(πt/2T)``), or τ(t) itself as a
            schedule.
        path: (a, σ); the cosine path by default.
        floor: m, the share of the signal that is not blurred, so that α_k never underflows.
        basis, discrete: see ``SpectralDiffusion``.

    Raises:
        ValueError: a Γ without a fast basis of a Laplacian; a floor out of [0, 1); horizons that differ.
    """

    def __init__(
        self,
        gamma: Covariance,
        blur: float | BetaSchedule,
        *,
        path: SignalPath | None = None,
        floor: float = 1e-3,
        basis: Basis | None = None,
        discrete: bool = False,
    ) -> None:
        found = spectral_basis(gamma, type(self).__name__, basis)
        scalar = CosinePath() if path is None else path
        heat = blur if isinstance(blur, BetaSchedule) else SineBlur(blur, scalar.horizon)
        eigenvalues = laplacian_eigenvalues(found, discrete=discrete)
        super().__init__(gamma, HeatPath(scalar, heat, eigenvalues, found, floor))


class FrequencyVP(SignalProcess):
    r"""Variance preserving with a schedule for each mode: ``du_k = -β_k/2 u_k dt + √(β_k γ_k) dW_k``.

    ``β_k(t) = Σ_j w_j(λ_k) β_j(t)``; stationary law N(0, Γ) in every mode. Equal weights are ``VP``.

    Args:
        gamma: Γ, diagonal in the basis of a Laplacian.
        weights: functions w_j ≥ 0 of λ ``(*modes)`` to ``(*modes)``, one for each schedule; a single one may
            stand for itself.
        schedules: β_j, of one horizon; β linear from 0.1 to 20 by default.
        basis, discrete: see ``SpectralDiffusion``.

    Raises:
        ValueError: a Γ without a fast basis of a Laplacian, negative weights, a mode without noise, numbers
            or horizons that differ.
    """

    def __init__(
        self,
        gamma: Covariance,
        weights: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
        schedules: BetaSchedule | Sequence[BetaSchedule] | None = None,
        *,
        basis: Basis | None = None,
        discrete: bool = False,
    ) -> None:
        found = spectral_basis(gamma, type(self).__name__, basis)
        eigenvalues = laplacian_eigenvalues(found, discrete=discrete)
        functions = [weights] if callable(weights) else list(weights)
        rates = LinearBeta() if schedules is None else schedules
        several = [rates] if isinstance(rates, BetaSchedule) else list(rates)
        if len(functions) != len(several):
            raise ValueError(f"{len(functions)} weights for {len(several)} schedules; give one for each")
        table = torch.stack(
            [torch.as_tensor(f(eigenvalues), dtype=torch.float64).expand(found.modes) for f in functions]
        )
        super().__init__(gamma, FrequencyPath(several, table, found))

    @property
    def stationary(self) -> Tensor | None:
        """1: the law N(0, Γ), in every mode."""
        return torch.ones(1, 1, dtype=torch.float64, device=self.covariance.device)
