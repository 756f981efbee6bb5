r"""What the solvers share that know the Gaussian part `N(μ, C)` of the data: a matrix for every mode.

Where Γ and C share a basis, `ρ = c/γ` per mode and the K variables of a mode mix by one matrix. The residual
`r = D - m` is extended over a step as `(1 + ρI) r`, fixed (order 1) or linear in log-SNR (order 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.denoisers.resolve import data_law
from spatialdiff.processes.moments import lower
from spatialdiff.sampling.base import Noise, Solver
from spatialdiff.sampling.exponential import extrapolation


class FittedSolver(Solver):
    """A solver that knows the Gaussian part of the data: from the denoiser, or given as `data`.

    Attributes:
        residual_order: 1 where the residual is fixed over a step, 2 where it is extrapolated.
    """

    residual_order: int = 1

    def __init__(
        self, denoiser: PosteriorMean, noise: Noise, condition: Mapping[str, Any], *, data: Any = None
    ) -> None:
        super().__init__(denoiser, noise, condition)
        model = getattr(denoiser, "gaussian", None)
        if data is not None:
            mean, covariance = data_law(data)
            model = GaussianModel(self.law.covariance, covariance, mean)
        if model is None:
            raise ValueError(
                "the Gaussian solvers need the fitted Gaussian law of the data: pass data= the result of "
                "sd.fit (or a pair "
                "(mean, Covariance)) to sd.sample, or give it to the Denoiser"
            )
        self.model: GaussianModel = model
        basis, gamma, data_variance = model.spectra()
        self.basis = model.shared_basis(basis, self.law)
        # a mode in which neither data nor noise vary stays as it is
        self.ratio = torch.where(data_variance > 0, data_variance / gamma, 0.0).double()
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    # -- per mode -------------------------------------------------------------------------------------------

    def per_mode(self, coefficient: Tensor, trailing: int) -> Tensor:
        """A coefficient `([modes], *trailing)` of the law, with axes for those of ρ that are no modes."""
        if self.law.basis is not None:
            return coefficient
        tail = coefficient.shape[coefficient.ndim - trailing :]
        return coefficient.reshape(*[1] * self.ratio.ndim, *tail)

    def mix_modes(self, matrix: Tensor, field: Tensor) -> Tensor:
        """`Σ_J M_IJ u_J` in every mode: M `(…, I, J)`, `…` against `(C, *modes)`, field `(n, J*C, *grid)`."""
        rows, columns = matrix.shape[-2:]
        batch, channels, *grid = field.shape
        each = channels // columns
        value = matrix.to(device=field.device, dtype=field.dtype).movedim((-2, -1), (0, 1))
        modes = 1 + len(self.basis.modes)
        value = value.reshape(rows, columns, *[1] * (modes + 2 - value.ndim), *value.shape[2:])
        coefficients = self.basis.analyze(field.reshape(batch, columns, each, *grid))
        mixed: Tensor = (value * coefficients[:, None]).sum(2)
        field = self.basis.synthesize(mixed)
        return field.reshape(batch, rows * each, *grid)

    def load(self, t: Tensor) -> Tensor:
        """`1 + ρI_t` per mode."""
        # a fixed start has neither signal nor noise, and says nothing
        information = torch.where(self.law.alpha(t) == 0, 0.0, self.law.information(t))
        return 1.0 + self.ratio * self.per_mode(information, 0)

    # -- the Gaussian part ----------------------------------------------------------------------------------

    def start(self) -> Tensor:
        """The exact marginal of the fitted data at the start, `N(φ μ + o, φφᵀ ⊗ C + Σ ⊗ Γ)`."""
        t = torch.as_tensor(self.start_time, dtype=torch.float64, device=self.ratio.device)
        noise = self.noise()
        phi, root = self.per_mode(self.law.marginal(t)[0], 1), self.per_mode(self.law.root(t), 2)
        signal = (self.ratio.sqrt()[..., None] * phi)[..., None]
        factor = torch.cat([signal, root.expand(*signal.shape[:-2], *root.shape[-2:])], dim=-1)
        return self.mix_modes(lower(factor), noise) + self.centre(t, noise)

    def centre(self, t: Tensor, u: Tensor) -> Tensor:
        """`φ_t ⊗ μ + o_t`."""
        offset = self.offset(t, u)
        if self.model.mean is None:
            return offset
        mean = self.model.mean.to(u).expand(len(u), u.shape[1] // self.law.variables, *u.shape[2:])
        return self.spread(self.law.marginal(t)[0], mean) + offset

    def gaussian_mean(self, u: Tensor, t: Tensor) -> Tensor:
        """`m(u, t)`, the posterior mean under `N(μ, C)`."""
        return self.model.posterior_mean(u, self.law, t)

    def extrapolate(self, r: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """`r` at `t`, or for order 2 what stands for it with `(1 + ρI) r` linear in log-SNR."""
        if self.residual_order == 1:
            return r
        level, load = self.law.log_snr(t), self.load(t)
        last, self.last = self.last, (r, level, load)
        slope = None if last is None else extrapolation(last[1], level, self.law.log_snr(s))
        if last is None or slope is None:
            return r
        share = (slope * last[2] / load)[..., None, None]
        return (1.0 + slope).to(r) * r - self.mix_modes(share, last[0])
