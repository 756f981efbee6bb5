r"""The parameters of a kernel one by one: what they are called, what they mean, and how they are stored.

Names are those of the kernels' attributes (``lengthscale[1]``), qualified by the kernel where two have the
same (``matern2.variance``). Of a coregionalisation :math:`\sum_q B_q k_q` the entries of the lower triangular
:math:`L_q` with positive diagonal and :math:`B_q = L_q L_q^T` are the parameters, ``L1[1,0]``: every
:math:`B_q` has one such root (QR factorisation of any other). Parameters of which only a product is
identified, and that their kernels' descriptions ask to be held, are held: scales of kernels under a
:math:`B_q`, and of the family inside a kernel with length scales or standard deviations of its own.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.fitting.roles import VARIANCES, axes_of, prefixes_of, redundant_in
from spatialdiff.fitting.storage import quantity_of
from spatialdiff.kernels import Anisotropic, Coregionalization, Gneiting, GridField, Nonstationary
from spatialdiff.kernels.local import ConstantField

LENGTHS = ("lengthscale", "timescale", "angle")
# turning a principal axis by half a circle changes nothing
_HALF_TURN = math.pi


@dataclass
class Parameter:
    """One scalar of a kernel: where it is stored, what it is called, how it is transformed, and its bounds.

    ``kind`` is "length", "variance", "deviation", "angle", "root" or "shape"; ``axes`` are the coordinates
    that its kernel sees (``None``: all but ``excluded``) and ``axis`` the place of its own one among them;
    ``unit`` is what it is multiplied by in the kernel; ``step`` is the natural size of a unit of the scale
    that is optimised, where that is no logarithm; ``tied`` names the parameter whose value it takes.
    """

    name: str
    path: str
    index: int
    attribute: str
    owner: str
    log: bool
    start: float
    lower: float
    upper: float
    free: bool = True
    bounded_by_user: bool = field(default=False, repr=False)
    valid_from: float = field(default=-math.inf, repr=False)
    kind: str = "shape"
    owner_path: str = ""
    axes: tuple[int, ...] | None = None
    excluded: int | None = None
    axis: int | None = None
    period: float | None = None
    unit: float = 1.0
    step: float = 1.0
    tied: str | None = None

    @property
    def is_lengthscale(self) -> bool:
        """Whether this is a length scale, in the domain's units (or a time, or an angle of arc)."""
        return self.kind == "length"

    @property
    def is_variance(self) -> bool:
        """Whether this scales a covariance (a nugget included)."""
        return self.kind == "variance"

    @property
    def is_nugget(self) -> bool:
        """Whether this is the variance of a :class:`~spatialdiff.kernels.Nugget`."""
        return self.is_variance and self.owner == "Nugget"

    @property
    def theta_bounds(self) -> tuple[float, float]:
        """The bounds on the scale that is optimised."""
        lower = -math.inf if self.log and self.lower <= 0.0 else self.to_theta(self.lower)
        return lower, self.to_theta(self.upper) if math.isfinite(self.upper) else math.inf

    def to_theta(self, natural: float) -> float:
        """Natural value to the scale that is optimised."""
        return math.log(natural) if self.log else natural / self.step

    def to_natural(self, theta: float) -> float:
        """The scale that is optimised to the natural value; an angle of a principal axis is reported in
        ``(-π/2, π/2]``."""
        if self.log:
            return math.exp(theta)
        if self.period is None:
            return theta * self.step
        half = self.period / 2.0
        return half - (half - theta) % self.period


def describe(kernel: Kernel | Coregionalization, constraints: Mapping[str, Any]) -> list[Parameter]:
    """The parameters of ``kernel`` at their present values, with readable names."""
    found: list[Parameter] = []
    axes = axes_of(kernel)
    redundant = set(redundant_in(kernel))
    for path, value in kernel.named_parameters():
        if isinstance(kernel, Coregionalization) and path.startswith("roots."):
            found += _root_entries(path, value, len(kernel.roots))
            continue
        owner_path, _, raw_name = path.rpartition(".")
        owner = kernel.get_submodule(owner_path)
        local = isinstance(owner, GridField | ConstantField)
        attribute = quantity_of(owner_path) if local else raw_name.removeprefix("raw_")
        parent = kernel.get_submodule(owner_path.rpartition(".")[0]) if local else owner
        constraint = constraints[path]
        lower, upper = -math.inf, math.inf
        natural = value.detach()
        if constraint is not None:
            lower = float(torch.as_tensor(constraint.lower_bound).max())
            upper = float(torch.as_tensor(constraint.upper_bound).min())
            natural = constraint.transform(natural)
        kind = _kind(attribute, parent)
        turned = isinstance(parent, Anisotropic) and "angles" in parent._parameters
        shape = natural.shape if local else natural.reshape(-1).shape
        own, excluded = next((axes[key] for key in prefixes_of(owner_path) if key in axes), (None, None))
        if isinstance(parent, Gneiting) and attribute == "timescale":
            own = (parent.time_axis,)
        places = list(itertools.product(*map(range, shape)))
        components = 1
        if isinstance(owner, GridField):
            components = math.prod(natural.shape[len(owner.spacing) :])
        elif natural.numel() > 1:
            components = natural.shape[-1]
        for index, (place, entry) in enumerate(zip(places, natural.reshape(-1).tolist(), strict=True)):
            found.append(
                Parameter(
                    name=f"{attribute}[{','.join(map(str, place))}]" if natural.numel() > 1 else attribute,
                    path=path,
                    index=index,
                    attribute=attribute,
                    owner=type(parent).__name__,
                    log=lower >= 0.0,
                    start=entry,
                    lower=lower,
                    upper=upper,
                    free=value.requires_grad and path not in redundant,
                    kind=kind,
                    owner_path=owner_path.rpartition(".")[0] if local else owner_path,
                    axes=own,
                    excluded=excluded,
                    axis=index % components if kind == "length" and components > 1 and not turned else None,
                    period=_period(kind, lower, parent, components),
                    unit=_unit(attribute, parent),
                )
            )
    return _readable(found)


def triangular(root: Tensor) -> Tensor:
    """The lower trapezoidal ``L'`` ``(C, r)`` with ``L' L'ᵀ = L Lᵀ`` and a positive diagonal."""
    lower = torch.linalg.qr(root.mT, mode="r").R.mT
    diagonal = lower.diagonal()
    turned: Tensor = (lower * torch.where(diagonal < 0.0, -1.0, 1.0)).tril()
    turned.diagonal().clamp_(min=1e-6 * float(turned.abs().amax()))
    return turned


def _root_entries(path: str, root: Tensor, terms: int) -> list[Parameter]:
    label = f"L{int(path.rpartition('.')[2]) + 1}" if terms > 1 else "L"
    entries = []
    for i in range(root.shape[0]):
        for j in range(min(i + 1, root.shape[1])):
            entries.append(
                Parameter(
                    name=f"{label}[{i},{j}]",
                    path=path,
                    index=i * root.shape[1] + j,
                    attribute=label,
                    owner="Coregionalization",
                    log=i == j,
                    start=float(root[i, j].detach()),
                    lower=0.0 if i == j else -math.inf,
                    upper=math.inf,
                    free=root.requires_grad,
                    kind="root",
                )
            )
    return entries


def _kind(attribute: str, parent: nn.Module) -> str:
    if attribute in VARIANCES:
        return "variance"
    if attribute in LENGTHS or (attribute == "scales" and not getattr(parent, "_relative", True)):
        return "length"
    return {"angles": "angle", "standard_deviation": "deviation"}.get(attribute, "shape")


def _period(kind: str, lower: float, parent: nn.Module, components: int) -> float | None:
    rotated = isinstance(parent, Anisotropic | Nonstationary)
    return _HALF_TURN if kind == "angle" and rotated and lower < 0.0 and components == 1 else None


def _unit(attribute: str, parent: nn.Module) -> float:
    """The parameter of the family inside that multiplies a local length scale or standard deviation."""
    inner = getattr(parent, "kernel", None)
    if isinstance(parent, Nonstationary) and isinstance(inner, Kernel):
        if attribute == "lengthscale":
            return float(inner.lengthscale.detach())
        if attribute == "standard_deviation":
            return float(torch.as_tensor(inner.variance).detach().sqrt())
    if isinstance(parent, Anisotropic) and attribute == "scales" and not parent._relative:
        length = getattr(inner, "lengthscale", None)
        return float(length.detach().mean()) if isinstance(length, Tensor) else 1.0
    return 1.0


def _readable(parameters: list[Parameter]) -> list[Parameter]:
    """Unique names: ``variance``; qualified by the kernel (``matern.variance``), numbered
    (``matern2.variance``) where needed."""

    def short(p: Parameter) -> str:
        if p.is_nugget:
            return p.name.replace(p.attribute, "nugget", 1)
        return p.name

    owners: dict[str, list[str]] = {}
    for p in parameters:
        paths = owners.setdefault(p.owner, [])
        if p.owner_path not in paths:
            paths.append(p.owner_path)
    counts = Counter(short(p) for p in parameters)
    named = []
    for p in parameters:
        name = short(p)
        if counts[name] > 1:
            kind = p.owner.removesuffix("Kernel").lower() or p.owner.lower()
            paths = owners[p.owner]
            number = str(paths.index(p.owner_path) + 1) if len(paths) > 1 else ""
            name = f"{name}{number}" if p.is_nugget else f"{kind}{number}.{name}"
        named.append(replace(p, name=name))
    return named
