r"""How a network's input and output are scaled, so that both stay of order one.

`none`: the network sees `(u, t)` and returns a prediction (`predictions`) as it is.

`edm` and `wiener`: under a Gaussian model of the data, with posterior mean `m`, posterior variance `V` and
state variance `P` (`gaussian`), the network sees the whitened state and returns the standardised residual of
the data,

    D(u, t) = m(u, t) ± V^{1/2} F(P^{-1/2} (y - φ μ), c),      c = log(σ/φ)/4 in [-5, 5],

y the sufficient statistic of the state (`processes.law`; for K = 1 the state itself). With auxiliary
variables the network sees them behind it, each scaled to the same spectrum: `y` and they determine the state.

- `wiener`: the fitted `N(μ, C)`, mode by mode; `V`, `P` are operators. Under it the target is white at every
  time, and a network that returns zero is the exact Gaussian posterior mean. The input is given the spectrum
  `c^{2 tint}`, scaled to unit mean: white for `tint = 0`, the data's own for `tint = 1/2`. A convolutional
  network reads neither end well (in a white field a large scale is a sum over very many sites, in a steep one
  the small scales are a trace); the default, 1/4, is halfway.
- `edm`: the same with pixels for modes, `c = σ_data²`, `γ` the mean variance of Γ. That is the
  preconditioning of Karras et al. 2022 (arXiv 2206.00364, table 1) for any `φ`, `σ` and Γ of any variance,
  written without `1/φ`.

The standardised residual of the data at fixed `u` is that of the noise and of the velocity up to sign (all
are linear in one another), so a `prediction` other than `data` only turns the sign: minus.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.denoisers.gaussian import GaussianModel, Moments, positive
from spatialdiff.denoisers.krylov import KrylovBasis
from spatialdiff.denoisers.predictions import to_data, to_target
from spatialdiff.domains import Domain
from spatialdiff.processes import Law

PRECONDITIONINGS = ("none", "edm", "wiener")
NOISE_LEVEL_LIMIT = 5.0


def noise_level(law: Law, t: Tensor) -> Tensor:
    """`c = log(σ/φ)/4`, clamped to [-5, 5]: the network's time input, shape of `t`."""
    return (-law.log_snr(t) / 8.0).clamp(-NOISE_LEVEL_LIMIT, NOISE_LEVEL_LIMIT)


class Preconditioning(nn.Module):
    """Between the state and a network: `D = decode(network(*encode(u, t)), u, t)`."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction

    @abstractmethod
    def encode(self, u: Tensor, law: Law, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's state and time inputs."""

    @abstractmethod
    def decode(self, output: Tensor, u: Tensor, law: Law, t: Tensor) -> Tensor:
        """The posterior mean that a network's output stands for."""

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, law: Law, t: Tensor) -> Tensor:
        """What the network should return where the data are `x` and the noise is `η`: `decode(target) =
        x`.
        """


class Unscaled(Preconditioning):
    """`none`: the network predicts `x`, the noise or the velocity from the state and the time themselves."""

    def encode(self, u: Tensor, law: Law, t: Tensor) -> tuple[Tensor, Tensor]:
        return u, t

    def decode(self, output: Tensor, u: Tensor, law: Law, t: Tensor) -> Tensor:
        return to_data(self.prediction, output, u, law, t)

    def target(self, x: Tensor, noise: Tensor, law: Law, t: Tensor) -> Tensor:
        return to_target(self.prediction, x, noise, law, t)


class GaussianResidual(Preconditioning):
    """`wiener`, and with a `PixelModel` `edm`: the network learns the residual to a Gaussian posterior
    mean.
    """

    def __init__(self, model: GaussianModel, prediction: str, tint: float = 0.0) -> None:
        super().__init__(prediction)
        self._model = (model,)  # a tuple: the model is registered once, in the denoiser
        self.tint = tint
        self.sign = 1.0 if prediction == "data" else -1.0

    @property
    def model(self) -> GaussianModel:
        """The Gaussian model of the data."""
        return self._model[0]

    def encode(self, u: Tensor, law: Law, t: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.model.moments(law, t)
        seen = [self.flatten(self.model.centre_state(u, law, t), self.input_scale(moments), moments)]
        if law.variables > 1:
            channels = u.shape[1] // law.variables
            centred = u - law.offset(t).to(u)
            phi, sigma = law.marginal(t)
            for j in range(1, law.variables):
                part = self.model.moments_of(phi[..., j], sigma[..., j, j], law)
                variable = centred[:, j * channels : (j + 1) * channels]
                if self.model.mean is not None:
                    variable = variable - law.scale(phi[..., j], self.model.mean.to(u).expand(variable.shape))
                seen.append(self.flatten(variable, self.input_scale(part), part))
        return torch.cat(seen, dim=1), noise_level(law, t)

    def input_scale(self, moments: Moments) -> Tensor:
        """`P^{-1/2}`, toned."""
        scale = torch.where(moments.state > 0, positive(moments.state).rsqrt(), 0.0)
        return scale * tone(moments, self.tint) if self.tint else scale

    def decode(self, output: Tensor, u: Tensor, law: Law, t: Tensor) -> Tensor:
        moments = self.model.moments(law, t)
        mean = moments.basis.multiply(self.model.centre_state(u, law, t), moments.gain.to(u.dtype))
        residual = self.unflatten(output, root(moments.posterior), moments)
        return self.model.shift(mean + self.sign * residual)

    def target(self, x: Tensor, noise: Tensor, law: Law, t: Tensor) -> Tensor:
        r"""`V^{-1/2}(x - m) = [σ γ (x - μ) - φ c η] / √(P c γ)`: a form in which nothing cancels as σ → 0."""
        moments = self.model.moments(law, t)
        scale = moments.state * moments.data * moments.gamma
        inverse = torch.where(scale > 0, positive(scale).rsqrt(), 0.0)
        of_data = self.flatten(
            self.model.centre(x), root(moments.noise_variance) * moments.gamma * inverse, moments
        )
        of_noise = self.flatten(noise, moments.phi * moments.data * inverse, moments)
        return self.sign * (of_data - of_noise)

    def flatten(self, x: Tensor, scale: Tensor, moments: Moments) -> Tensor:
        """`x` times `scale` per mode, so that a field of covariance `scale^{-2}` becomes white."""
        if orthonormal(moments.basis):
            return moments.basis.multiply(x, scale.to(x.dtype))
        coloured = moments.basis.multiply(x, (scale * moments.gamma.sqrt()).to(x.dtype))
        return self.model.gamma.whiten(coloured) if self.whitens else coloured

    def unflatten(self, x: Tensor, scale: Tensor, moments: Moments) -> Tensor:
        """White `x` to a field of covariance `scale²` per mode."""
        if orthonormal(moments.basis):
            return moments.basis.multiply(x, scale.to(x.dtype))
        coloured = self.model.gamma.color(x) if self.whitens else x
        return moments.basis.multiply(coloured, (scale / moments.gamma.sqrt()).to(x.dtype))

    @property
    def whitens(self) -> bool:
        """Whether Γ has a square root to whiten with; else fields of covariance Γ stand for white ones."""
        return tuple(self.model.gamma.factor_shape) == tuple(self.model.gamma.event_shape)


def check_residual(model: GaussianModel) -> None:
    """Raise `ValueError` unless Γ and the data's covariance share a basis and, where that is dense, Γ
    whitens; or the grid is so large that functions of the two go by Lanczos (`krylov`).
    """
    basis, _, _ = model.spectra()
    if isinstance(basis, KrylovBasis):
        return
    if not orthonormal(basis) and tuple(model.gamma.factor_shape) != tuple(model.gamma.event_shape):
        raise ValueError(
            f"preconditioning='wiener' with a {type(model.gamma).__name__} and these data has no common "
            f"fast basis, and this "
            "Γ does not whiten; use a Γ of method='dense', 'torus' or 'cosine'"
        )


def resolve_tint(model: GaussianModel, tint: float | None) -> float:
    """`tint`, or the default: 1/4 where Γ and `C` share an orthonormal basis, 0 (white) elsewhere.

    Raises:
        ValueError: below 0 or above 1/2, or not 0 where the modes are generalised eigenvectors, which have no
            scale of their own.
    """
    plain = orthonormal(model.spectra()[0])
    if tint is None:
        return 0.25 if plain else 0.0
    if not 0.0 <= tint <= 0.5:
        raise ValueError(f"tint={tint:g}; needed a number from 0 (white input) to 1/2 (the data's spectrum)")
    if tint and not plain:
        raise ValueError(
            f"tint={tint:g} needs a basis in which Γ and the data's covariance are both diagonal (cosine, "
            "torus, or one of them white, without a channel matrix); use tint=0"
        )
    return tint


def tone(moments: Moments, tint: float) -> Tensor:
    """`c^tint` with a mean square of 1 over all modes: it gives a white field the spectrum `c^{2 tint}`."""
    powers = moments.data.pow(2.0 * tint)
    weights = moments.basis.weights.to(powers)
    axes = tuple(range(-len(moments.basis.modes), 0))
    return (powers / ((powers * weights).sum(axes, keepdim=True) / weights.sum())).sqrt()


def orthonormal(basis: Basis) -> bool:
    """Whether white coefficients make a white field; not so for generalised eigenvectors."""
    return basis.orthonormal


def root(x: Tensor) -> Tensor:
    """Square root with a finite gradient at zero."""
    return torch.where(x > 0, positive(x).sqrt(), 0.0)


class PixelBasis(Basis):
    """The sites themselves: multipliers broadcast over the domain."""

    def __init__(self, grid: Domain) -> None:
        super().__init__(grid)
        self.modes = torch.Size([1] * grid.ndim)

    def analyze(self, x: Tensor) -> Tensor:
        return x

    def synthesize(self, c: Tensor) -> Tensor:
        return c


class PixelModel(GaussianModel):
    """Independent pixels: variance `σ_data²` of the data, the mean variance of Γ for the noise (EDM's
    model).
    """

    def __init__(
        self, gamma: Covariance, sigma_data: float | Tensor, mean: Tensor | float | None = None
    ) -> None:
        super().__init__(gamma, None, mean)
        self.register_buffer("sigma_data", torch.as_tensor(sigma_data, dtype=torch.float64))

    def shared_basis(self, basis: Basis, law: Law) -> Basis:
        """The sites; where the law differs from mode to mode its modes, all alike for this model."""
        return basis if law.basis is None else law.basis

    def spectra(self) -> tuple[Basis, Tensor, Tensor]:
        return (
            PixelBasis(self.gamma.domain),
            self.gamma.variance().double().mean(),
            self.get_buffer("sigma_data").square(),
        )


def sigma_data(covariance: Covariance) -> Tensor:
    """`√(mean variance)` of fields with this covariance."""
    return covariance.variance().detach().double().mean().sqrt()


__all__ = [
    "PRECONDITIONINGS",
    "GaussianResidual",
    "PixelModel",
    "Preconditioning",
    "Unscaled",
    "check_residual",
    "noise_level",
    "sigma_data",
]
