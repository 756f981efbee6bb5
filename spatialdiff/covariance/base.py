r"""Γ as an operator: ``Γ = B ⊗ Γ_s`` with ``Γ_s = R_s R_sᵀ`` on a domain and ``B = L Lᵀ`` on the channels.

Every structure gives the spatial part, six small methods that act on the trailing axes of a field; this class
adds the channels, the checks, the Gaussian density and sampling, once. With ``R = L ⊗ R_s``:

``η = R z``, ``z = R⁻¹ x``, ``log det Γ = C log det Γ_s + n log det B``, ``log N(x; 0, Γ) = -½ (xᵀΓ⁻¹x + log
det Γ + N log 2π)``.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import gpytorch
import torch
from linear_operator import LinearOperator
from torch import Tensor, nn

from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.channels import channel_apply, channel_covariance
from spatialdiff.covariance.checks import check_finite
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, MaskedGrid

# parameters up to this size are compared by value, larger ones by storage and version
_SMALL = 64

Channels = int | Tensor | Sequence[Sequence[float]] | None


class Covariance(nn.Module, ABC):
    """Base of all structures; see the module for the equations.

    Fields have shape ``(..., *domain.shape)`` with ``channels=None`` (Γ then acts on the domain and
    broadcasts over every leading axis), and ``(..., C, *domain.shape)`` with ``channels=C`` or a ``(C, C)``
    matrix ``B``.
    A kernel with ``batch_shape`` makes a batch of covariances: its axes come before those of the event and
    line up with the last of the leading axes of a field.

    Differentiable in the parameters of ``kernel`` where they require a gradient and gradients are on;
    otherwise factors are computed once and again only after a parameter has changed. Parameters and spectra
    stay in float64 under ``.to(dtype)``, which sets the data type of samples.

    Args:
        domain: where the field lives.
        channels: None, the number of independent channels, or the channel covariance ``B``.
        kernel: the kernel, where there is one.
    """

    method = ""
    basis: Basis | None = None
    is_white = False
    # why method="auto" took this structure
    choice = ""
    kernel: gpytorch.kernels.Kernel | None
    channel_matrix: Tensor | None
    _anchor: Tensor

    def __init__(
        self, domain: Domain, channels: Channels = None, kernel: gpytorch.kernels.Kernel | None = None
    ) -> None:
        super().__init__()
        if not isinstance(domain, Domain):
            raise TypeError(
                f"{type(self).__name__} needs a domain, such as a Grid or Points, got "
                f"{type(domain).__name__}."
            )
        self.domain = domain
        self.kernel = kernel
        self.channels, matrix = channel_covariance(channels)
        self.register_buffer("channel_matrix", matrix)
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self._cache: dict[Any, Tensor] = {}
        self._seen: list[tuple[Any, Tensor | None]] = []

    # ---- shapes
    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of hyperparameters of the kernel."""
        return torch.Size() if self.kernel is None else self.kernel.batch_shape

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one field: ``domain.shape``, or ``(C, *domain.shape)``."""
        return torch.Size((*self._lead(), *self.domain.shape))

    @property
    def factor_shape(self) -> torch.Size:
        """Shape of the white noise that `color` takes."""
        return torch.Size((*self._lead(), *self._factor_grid()))

    @property
    def dtype(self) -> torch.dtype:
        """Data type of samples; follows ``.to()``."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    def _lead(self) -> tuple[int, ...]:
        return () if self.channels is None else (self.channels,)

    def _factor_grid(self) -> tuple[int, ...]:
        return self.domain.shape

    # ---- the spatial part, given by each structure: (..., *batch_shape, *domain.shape)
    @abstractmethod
    def _color(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _whiten(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _matmul(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _solve(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_det(self) -> Tensor:
        """``log det Γ_s``, float64, ``(*batch,)``, or ``(C,)`` where the channels have spectra of their
        own.
        """

    @abstractmethod
    def _variance(self) -> Tensor:
        """Diagonal of Γ_s, float64, with all axes of the domain, broadcastable to ``(*batch,
        *domain.shape)``.
        """

    @property
    def report(self) -> CovarianceReport:
        """How Γ is represented, how exactly, and why so."""
        return dataclasses.replace(self._report(), choice=self.choice)

    def _report(self) -> CovarianceReport:
        return CovarianceReport(method=self.method, exact=True)

    # ---- the interface
    def sample(self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``N(0, Γ)``, shape ``(*shape, *batch_shape, *event_shape)``, in the data type and on the
        device of this module; a number is as many fields.
        """
        white = torch.randn(
            *as_shape(shape),
            *self.batch_shape,
            *self.factor_shape,
            generator=generator,
            dtype=self.dtype,
            device=self.device,
        )
        return self.color(white)

    def color(self, white: Tensor) -> Tensor:
        """``η = R z``: ``(..., *factor_shape)`` → ``(..., *event_shape)``."""
        white = self._prepare(white, self.factor_shape, "color")
        return self._on_channels(self._spatial(self._color, white, self._factor_grid()), "root")

    def whiten(self, field: Tensor) -> Tensor:
        """``z = R⁻¹ x``: ``(..., *event_shape)`` → ``(..., *factor_shape)``; raises where ``R`` is not
        square, or on NaN.
        """
        field = self._prepare(field, self.event_shape, "whiten", finite=True)
        return self._spatial(self._whiten, self._on_channels(field, "inverse_root"), self.domain.shape)

    def matmul(self, field: Tensor) -> Tensor:
        """``Γ x``, shape kept."""
        field = self._prepare(field, self.event_shape, "matmul")
        return self._on_channels(self._spatial(self._matmul, field, self.domain.shape), "matrix")

    def solve(self, field: Tensor) -> Tensor:
        """``Γ⁻¹ x``, shape kept; raises on NaN and where Γ is singular."""
        field = self._prepare(field, self.event_shape, "solve", finite=True)
        return self._on_channels(self._spatial(self._solve, field, self.domain.shape), "inverse")

    def log_det(self) -> Tensor:
        """``log det Γ`` of the event, float64, shape ``batch_shape``; see `log_det_standard_error`."""
        spatial = self._log_det()
        if self.channels is None:
            return spatial
        own_spectra = spatial.dim() > len(self.batch_shape)
        total = spatial.sum() if own_spectra else self.channels * spatial
        if self.channel_matrix is not None:
            total = total + self.domain.size * torch.logdet(self.channel_matrix)
        return total

    def log_det_standard_error(self) -> Tensor:
        """Standard error of `log_det`, float64, shape ``batch_shape``: 0 where it is exact."""
        error = self._log_det_standard_error()
        return error if self.channels is None else self.channels * error

    def _log_det_standard_error(self) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=torch.float64, device=self.device)

    def quad_form(self, x: Tensor) -> Tensor:
        """``xᵀ Γ⁻¹ x`` per field: ``(..., *event_shape)`` → ``(..., *batch_shape)``."""
        x = self._prepare(x, self.event_shape, "quad_form")
        return (x * self.solve(x)).sum(self._event_axes())

    def log_prob(self, x: Tensor) -> Tensor:
        """``log N(x; 0, Γ)`` per field, nats: ``(..., *event_shape)`` → ``(..., *batch_shape)``."""
        x = self._prepare(x, self.event_shape, "log_prob")
        constant = self.domain.size * (self.channels or 1) * math.log(2 * math.pi)
        return -0.5 * (self.quad_form(x) + (self.log_det() + constant).to(x.dtype))

    def variance(self) -> Tensor:
        """Diagonal of Γ, shape ``(*batch_shape, *event_shape)``, float64."""
        spatial = self._variance()
        if self.channels is not None and self.batch_shape:
            spatial = spatial.unsqueeze(-self.domain.ndim - 1)
        if self.channel_matrix is not None:
            spatial = spatial * self.channel_matrix.diagonal().reshape(-1, *(1,) * self.domain.ndim)
        return spatial.expand(*self.batch_shape, *self.event_shape)

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of Γ in `basis`, float64, shape ``(*batch_shape, *basis.modes)``, or ``(*batch_shape,
        C, *basis.modes)`` with channels.

        Raises:
            ValueError: the structure has no fast basis, or the channels are correlated.
        """
        values = self.spatial_eigenvalues()
        if self.channels is None or self.basis is None:
            return values
        modes = self.basis.modes
        if self.batch_shape:
            values = values.unsqueeze(-len(modes) - 1)
        values = values.expand(*self.batch_shape, self.channels, *modes)
        if self.channel_matrix is not None:
            diagonal = self.channel_matrix.diagonal()
            if not torch.equal(self.channel_matrix, torch.diag(diagonal)):
                raise ValueError(
                    "eigenvalues: the channels are correlated, so that Γ is diagonal in the basis for no "
                    "single channel; use spatialdiff.covariance.joint_spectrum, which rotates the channels."
                )
            values = values * diagonal.reshape(-1, *(1,) * len(modes))
        return values

    def spatial_eigenvalues(self) -> Tensor:
        """Eigenvalues of Γ_s, without the channel matrix: ``basis.modes`` or ``(C, *basis.modes)``."""
        raise ValueError(
            f'{type(self).__name__} is diagonal in no fast basis; use method="torus" on a periodic grid '
            'or method="cosine" on any.'
        )

    def to_dense(self) -> Tensor:
        """Γ as a matrix ``(*batch_shape, N, N)``, float64, ``N`` the number of entries of the event
        (row-major; rows and columns of masked cells are 0).
        """
        size, batch = self.event_shape.numel(), self.batch_shape
        eye = torch.eye(size, dtype=torch.float64, device=self.device)
        columns = self.matmul(eye.reshape(size, *(1,) * len(batch), *self.event_shape))
        dense = columns.flatten(-len(self.event_shape)).movedim(0, -2)
        return ((dense + dense.mT) / 2).contiguous()

    def to_linear_operator(self) -> LinearOperator:
        """Γ as a `linear_operator.LinearOperator` of shape ``(N, N)`` whose products go through `matmul`."""
        from spatialdiff.covariance.linear import CovarianceOperator

        return CovarianceOperator(torch.empty(0, dtype=self.dtype, device=self.device), covariance=self)

    def __add__(self, other: Covariance) -> Covariance:
        """``Γ_1 + Γ_2``, the law of the sum of independent fields."""
        from spatialdiff.covariance.compositions.sums import SumCovariance

        return SumCovariance(self, other) if isinstance(other, Covariance) else NotImplemented

    def scaled(self, std: float | Tensor) -> Covariance:
        """``diag(s) Γ diag(s)`` with a standard deviation ``s``, one number or a field."""
        from spatialdiff.covariance.compositions.scaled import ScaledCovariance

        return ScaledCovariance(self, std)

    # ---- shared machinery
    def _event_axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.event_shape), 0))

    def _prepare(self, x: Tensor, shape: torch.Size, what: str, *, finite: bool = False) -> Tensor:
        """``x``, checked, with 0 in masked cells."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{what}: needs a real floating-point tensor, got {kind}.")
        if x.shape[x.dim() - len(shape) :] != shape or x.dim() < len(shape):
            expected = ", ".join(map(str, shape))
            hint = ""
            if self.channels is not None:
                hint = f" (Γ has {self.channels} channels, then the axes of the domain)"
            raise ValueError(f"{what}: needs shape (..., {expected}){hint}, got {tuple(x.shape)}.")
        if self.batch_shape:
            lead = x.shape[: x.dim() - len(shape)][-len(self.batch_shape) :]
            if any(n not in (1, b) for n, b in zip(lead[::-1], self.batch_shape[::-1], strict=False)):
                raise ValueError(
                    f"{what}: Γ is a batch of shape {tuple(self.batch_shape)}; the axes before the field's "
                    f"must end in it or in ones, got {tuple(x.shape)}."
                )
        if x.device != self._anchor.device:
            raise ValueError(
                f"{what}: the field is on {x.device}, Γ on {self.device}; move one of them with .to()."
            )
        # white noise may have the shape of the grid and a use for every cell
        if isinstance(self.domain, MaskedGrid) and what != "color":
            x = torch.where(self.domain.valid.to(x.device), x, 0.0)
        if finite:
            check_finite(x, what)
        return x

    def _spatial(self, operation: Callable[[Tensor], Tensor], x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """``operation`` on the last ``len(axes)`` axes of ``x``, with the batch axes of the kernel before
        them and the channels before those.
        """
        batch = self.batch_shape
        if not batch:
            return operation(x)
        inner = len(self._lead()) + len(axes)
        x = x.expand(*torch.broadcast_shapes(x.shape[: x.dim() - inner], batch), *x.shape[x.dim() - inner :])
        if self.channels is None:
            return operation(x)
        result = operation(x.movedim(-inner, -inner - len(batch)))
        after = result.dim() - x.dim() + inner
        return result.movedim(-after - len(batch), -after)

    def _on_channels(self, x: Tensor, name: str) -> Tensor:
        if self.channel_matrix is None:
            return x
        return channel_apply(self._factor(f"channel_{name}", x.dtype), x, self.domain.ndim)

    def _compute_channel_matrix(self) -> Tensor:
        assert self.channel_matrix is not None
        return self.channel_matrix

    def _compute_channel_root(self) -> Tensor:
        result: Tensor = torch.linalg.cholesky(self._compute_channel_matrix())
        return result

    def _compute_channel_inverse_root(self) -> Tensor:
        result: Tensor = torch.linalg.inv(self._compute_channel_root())
        return result

    def _compute_channel_inverse(self) -> Tensor:
        return torch.cholesky_inverse(self._compute_channel_root())

    def _tracked(self) -> list[Tensor]:
        """What factors depend on."""
        return [*self.parameters(), *(b for b in self.buffers() if b.is_floating_point())]

    def _factor(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        """The factor that ``_compute_<name>`` gives in float64, cast to ``dtype``; cached unless a gradient
        is wanted.
        """
        compute: Callable[[], Tensor] = getattr(self, f"_compute_{name}")
        if torch.is_grad_enabled() and any(t.requires_grad for t in self._tracked()):
            return compute().to(dtype)
        self._forget_if_changed()
        if (name, dtype) not in self._cache:
            # a tensor made in inference mode could not be used in a graph later
            with torch.inference_mode(False), torch.no_grad():
                full = compute() if dtype == torch.float64 else self._factor(name)
                self._cache[name, dtype] = full.to(dtype)
        return self._cache[name, dtype]

    def _forget_if_changed(self) -> None:
        current = [_fingerprint(t) for t in self._tracked()]
        same = len(current) == len(self._seen) and all(
            key == seen_key and (value is None or seen is None or torch.equal(value, seen))
            for (key, value), (seen_key, seen) in zip(current, self._seen, strict=True)
        )
        if not same:
            self._cache = {}
            self._seen = [(key, None if value is None else value.clone()) for key, value in current]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        anchor = fn(self._anchor)

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        self._anchor = anchor
        self._cache, self._seen = {}, []
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_seen": []}

    def extra_repr(self) -> str:
        return f"{self.domain}, channels={self.channels}"


def as_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """``(n,)`` for a number ``n``."""
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _fingerprint(tensor: Tensor) -> tuple[Any, Tensor | None]:
    # small tensors by value: gpytorch writes parameters through `.data`, which version counters do not see
    if tensor.numel() <= _SMALL:
        return (tensor.shape, tensor.device), tensor.detach()
    version = 0 if tensor.is_inference() else tensor._version
    return (tensor.shape, tensor.device, tensor.data_ptr(), version), None
