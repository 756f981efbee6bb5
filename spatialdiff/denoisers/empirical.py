r"""The posterior mean for a finite data set: a softmax average.

For data drawn uniformly from `x_1 … x_N` and the statistic `y | x ~ N(α x, σ² Γ)` of the state,

    E[x | u_t = u] = Σ_i w_i x_i,      w_i ∝ exp(-½ ‖y - α x_i‖² / σ²)  in the norm of Γ^{-1},

the exact optimum of every objective on that data set (docs/theory, "Bridges"; Peluchetti, arXiv 2312.14589,
section 5).
A sampler that uses it ends on the data themselves: a baseline that shows what copying looks like.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis
from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.resolve import resolve_law
from spatialdiff.processes import Law


class EmpiricalDenoiser(PosteriorMean):
    r"""The exact `E[x | u_t]` for data uniform on a finite set.

    The log-weights are `(α ⟨y, Γ^{-1} x_i⟩ - ½ α² ⟨x_i, Γ^{-1} x_i⟩) / σ²` up to a constant, in float64 (mode
    by mode where α and σ differ between modes); `Γ^{-1} x_i` is solved once.

    Args:
        process: a noise process, a bridge (then `coupling` is needed), or a law of the state given the data.
        data: the data set, shape `(N, C, *grid)`.
        coupling: for a bridge, how its start is drawn.
        chunk: states handled at a time, which bounds memory at `chunk × N` weights.

    Raises:
        ValueError: `data` is empty, has another shape, or holds values that are not finite.

    Source: Peluchetti, arXiv 2312.14589, section 5.
    """

    data: Tensor
    solved: Tensor
    norms: Tensor

    def __init__(self, process: Any, data: Tensor, *, coupling: Any = None, chunk: int = 1024) -> None:
        law = resolve_law(process, coupling)
        shape = tuple(law.covariance.domain.shape)
        if data.ndim != 2 + len(shape) or tuple(data.shape[2:]) != shape or data.shape[0] == 0:
            raise ValueError(
                f"data of shape {tuple(data.shape)}; needed (N, C, {', '.join(map(str, shape))}) with N at "
                f"least 1"
            )
        if not bool(torch.isfinite(data).all()):
            raise ValueError(f"data hold {int((~torch.isfinite(data)).sum())} values that are not finite")
        if chunk < 1:
            raise ValueError(f"chunk={chunk}; it is a number of states, at least 1")
        super().__init__(data.shape[1])
        self.process_law = law
        self.chunk = chunk
        self.register_buffer("data", data)
        with torch.no_grad():
            solved, norms = self.solve()
        self.register_buffer("solved", solved, persistent=False)
        self.register_buffer("norms", norms, persistent=False)

    @property
    def law(self) -> Law:
        return self.process_law

    def solve(self) -> tuple[Tensor, Tensor]:
        """`Γ^{-1} x_i` as `(N, n)` and `⟨x_i, Γ^{-1} x_i⟩` as `(N,)`, float64."""
        solved = self.covariance.solve(self.data).double().flatten(1)
        return solved, (solved * self.data.double().flatten(1)).sum(1)

    def log_weights(self, u: Tensor, t: Tensor | float) -> Tensor:
        """Normalised log-weights of the data given states `u` at times `t`, shape `(B, N)`, float64.

        Raises:
            ValueError: `σ_t = 0` while the state holds data: every weight is then degenerate.
        """
        t = self.times(u, t)
        phi, variance = self.law.alpha(t), self.law.variance(t)
        if bool(((variance == 0) & (phi != 0)).any()):
            raise ValueError(
                "σ_t = 0: the state is the data itself, and no softmax is needed; take t before the end"
            )
        differentiable = torch.is_grad_enabled() and any(
            p.requires_grad for p in self.covariance.parameters()
        )
        solved, norms = self.solve() if differentiable else (self.solved, self.norms)
        # A start at a fixed point has α = σ = 0 and tells nothing about the data: uniform weights.
        gain = torch.where(variance > 0, phi / torch.where(variance > 0, variance, 1.0), 0.0)
        y = self.law.reduce(u.double(), t)
        matched = self.law.scale(gain, y).flatten(1)
        information = phi * gain
        if self.law.basis is None:
            information = information.reshape(-1, 1).expand(len(u), 1)
        else:
            norms = self.mode_norms(self.law.basis, solved)
            information = information.reshape(-1, norms.shape[1]).expand(len(u), -1)
        pieces = []
        for rows in torch.arange(len(u), device=u.device).split(self.chunk):
            quadratic = information[rows] @ norms.reshape(len(solved), -1).T
            pieces.append(torch.log_softmax(matched[rows] @ solved.T - 0.5 * quadratic, dim=1))
        return torch.cat(pieces)

    def mode_norms(self, basis: Basis, solved: Tensor) -> Tensor:
        """The share of each mode in `⟨x_i, Γ^{-1} x_i⟩`, `(N, modes)`, float64."""
        fields = self.data.double()
        shares = basis.analyze(fields).conj() * basis.analyze(solved.reshape(fields.shape))
        return (basis.weights.to(solved) * shares.real).sum(1).flatten(1)

    def weights(self, u: Tensor, t: Tensor | float) -> Tensor:
        """The weights `w_i`, shape `(B, N)`, float64; each row sums to 1."""
        return self.log_weights(u, t).exp()

    def entropy(self, u: Tensor, t: Tensor | float) -> Tensor:
        """`-Σ_i w_i log w_i` in nats, shape `(B,)`: from `log N` (no information) to 0 (one field
        recalled).
        """
        log_weights = self.log_weights(u, t)
        entropy: Tensor = -torch.special.xlogy(w := log_weights.exp(), w).sum(1)
        return entropy

    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`Σ_i w_i x_i`, shape `(B, C, *grid)`."""
        mean = self.weights(u, t) @ self.data.double().flatten(1)
        return mean.to(u.dtype).reshape(len(u), *self.data.shape[1:])
