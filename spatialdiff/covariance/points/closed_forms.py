r"""Kernels that are sums of isotropic closed forms: ``k(h) = Σ_t v_t ρ_t(‖β_t h‖) + nugget 1{h=0}``.

Profiles as functions of ``s = ‖β h‖``, with their slopes ``φ(s) = ρ'(s)/s``, from which the derivative in a
scale follows, ``∂ρ/∂β_a = φ(s) (β_a h_a)²/β_a``:

=============  ========================  =======================  ==================
family         ``ρ(s)``                  ``φ(s)``                 ``β``
=============  ========================  =======================  ==================
exponential    ``exp(-s)``               ``-exp(-s)/s``           ``1/ℓ``
matern32       ``(1 + s) exp(-s)``       ``-exp(-s)``             ``√3/ℓ``
matern52       ``(1+s+s²/3) exp(-s)``    ``-(1 + s) exp(-s)/3``   ``√5/ℓ``
gaussian       ``exp(-s²)``              ``-2 exp(-s²)``          ``1/(√2 ℓ)``
=============  ========================  =======================  ==================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, terms

FAMILIES = ("exponential", "matern32", "matern52", "gaussian")
_MATERN = {0.5: "exponential", 1.5: "matern32", 2.5: "matern52"}
_FACTOR = {
    "exponential": 1.0,
    "matern32": math.sqrt(3.0),
    "matern52": math.sqrt(5.0),
    "gaussian": math.sqrt(0.5),
}


@dataclass(frozen=True)
class ClosedForm:
    """The parameters of such a kernel, each with its graph; see the module.

    Attributes:
        families: one name per term.
        variances: ``v``, ``(terms, *batch)``.
        scales: ``β``, ``(terms, *batch, d)``.
        nugget: ``(*batch,)``.
    """

    families: tuple[str, ...]
    variances: Tensor
    scales: Tensor
    nugget: Tensor


def family_of(kernel: gpytorch.kernels.Kernel) -> str | None:
    """Name of the closed form that an elementary kernel is, None for another kernel."""
    # exact types: a subclass may change the correlation
    if getattr(kernel, "active_dims", None) is not None:
        return None
    if type(kernel) is Gaussian:
        return "gaussian"
    if type(kernel) not in (Matern, Exponential) or not isinstance(kernel.nu, float | int):
        return None
    return _MATERN.get(float(kernel.nu))


def closed_form(kernel: gpytorch.kernels.Kernel, d: int) -> ClosedForm | None:
    """``kernel`` in ``d`` dimensions as a sum of closed forms; None where it is not one."""
    parts = terms(kernel)
    if any(len(part) > 1 for part in parts):
        return None
    smooth = [part[0] for part in parts if type(part[0]) is not Nugget]
    names = [family_of(part) for part in smooth]
    if not smooth or any(name is None for name in names):
        return None
    batch = kernel.batch_shape
    scales, variances = [], []
    for part, name in zip(smooth, names, strict=True):
        assert name is not None
        ell = part.lengthscale
        if ell.shape[-1] not in (1, d):
            return None  # the kernel itself says what is wrong
        scales.append((_FACTOR[name] / ell.squeeze(-2)).expand(*batch, d))
        variances.append(part.variance.expand(batch))
    nugget = torch.zeros(batch, dtype=torch.float64, device=variances[0].device)
    for part in parts:
        if type(part[0]) is Nugget:
            nugget = nugget + part[0].variance
    return ClosedForm(tuple(filter(None, names)), torch.stack(variances), torch.stack(scales), nugget)
