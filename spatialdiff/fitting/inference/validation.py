r"""Cross-validation in closed form: every fold is predicted from the sites outside it.

With ``Γ`` the covariance of the observed values (measurement noise included), ``X`` the design of the mean,

.. math:: Q = \Gamma^{-1} - \Gamma^{-1}X (X^T\Gamma^{-1}X)^{-1} X^T\Gamma^{-1},

the error of the best linear unbiased prediction of fold ``B`` from everything else, *coefficients of the mean
estimated again without it*, and the covariance of that error are

.. math:: y_B - \hat y_B = Q_{BB}^{-1} (Q y)_B, \qquad \operatorname{Cov} = Q_{BB}^{-1}

[Dubrule 1983 for single sites; Ginsbourger & Schärer 2023 for folds]: one inverse serves all folds, see
:mod:`.folds`. Covariance parameters are held at the values given. Replicates share the coefficients of the
mean, and a site that is left out is left out of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from gpytorch.kernels import AdditiveKernel, Kernel
from torch import Tensor

from spatialdiff.covariance import Covariance, covariance
from spatialdiff.covariance.dense import kernel_matrix
from spatialdiff.domains import Domain, Graph, MaskedGrid, Mesh, Sphere
from spatialdiff.fitting.inference.folds import make_folds, predict_folds
from spatialdiff.fitting.inference.validated import Validation
from spatialdiff.fitting.mean import Mean
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.result import FitResult
from spatialdiff.kernels import Coregionalization, Nugget

DENSE_VALUES = 10_000
Model: TypeAlias = "Kernel | Coregionalization | Covariance | FitResult"


def cross_validate(
    model: Model,
    fields: Tensor,
    domain: Domain,
    *,
    mean: Mean = "constant",
    folds: str | int | Tensor = "loo",
    block_size: float | Sequence[float] | None = None,
    noise: float | Tensor = 0.0,
    noise_free: bool = False,
    missing: str = "omit",
    seed: int = 0,
) -> Validation:
    """Predict every value from the sites outside its fold, with covariance parameters as given.

    Args:
        model: a kernel, a covariance on ``domain``, or a fit. Kernels act on each channel alone;
            coregionalisations and covariances with channels predict from all channels, and all channels of a
            site are left out together.
        fields: ``(N, *domain.shape)``, ``(N, C, *domain.shape)``, or one field; NaN is not observed.
        domain: where they are.
        mean: as in `spatialdiff.fit`; coefficients are estimated for each fold without it, from all fields.
        folds: ``"loo"`` (each site), the number of random folds, ``"blocks"`` (tiles of side
            ``block_size``), or whole-number labels ``domain.shape``; sites with a negative label are never
            left out.
        block_size: side of the tiles in the unit of the coordinates, one number or one per axis.
        noise: variance of the error of measurement besides the kernel's nugget, a number or ``domain.shape``.
        noise_free: whether ``variance`` is that of the field without nugget and noise. Standardised errors
            and scores compare with the data, and keep the variance with both.
        missing: ``"omit"`` or ``"raise"``.
        seed: of random folds.

    Returns:
        A `Validation`; ``print`` it.

    Raises:
        ValueError: more than 10,000 values in a field; ``mean="field"``; all sites in one fold; a fold
            without which the mean cannot be estimated; what `spatialdiff.fitting.observe` refuses.
        TypeError: a model of another kind.

    References:
        Dubrule 1983; Ginsbourger & Schärer 2023 (arXiv 2101.03108).
    """
    if isinstance(mean, str) and mean == "field":
        raise ValueError(
            "mean='field' has a coefficient at every site, of which nothing is known where the site is left "
            "out: use 'constant', 'linear' or covariates, or give the known mean as a tensor"
        )
    data = observe(fields, domain, mean, missing)
    lead = fields.dim() - domain.ndim
    values = fields.detach().cpu().double().reshape(-1, data.channels, *domain.shape)
    event = (data.channels, *domain.shape) if lead == 2 else tuple(domain.shape)
    offset = domain.flatten(torch.broadcast_to(data.mean, event).reshape(data.channels, *domain.shape))
    given = domain.flatten(values)
    seen = torch.isfinite(given) & _distinct(domain)
    n = given.shape[-1]
    sites = None if isinstance(domain, Graph) else domain.sites()
    labels = make_folds(_flat_labels(folds, domain), sites, n, block_size, seed)
    extra = _noise(noise, domain, n)
    gamma, joint = _matrix(model, data, domain)
    design = None if data.given_linear is None else data.given_linear.columns
    centred = torch.where(seen, given - offset, 0.0)
    if joint:
        c = data.channels
        errors, variances = predict_folds(
            gamma + torch.diag(extra.repeat(c)),
            None if design is None else torch.block_diag(*[design] * c),
            centred.flatten(1),
            seen.flatten(1),
            labels.repeat(c),
        )
        errors, variances = errors.reshape(given.shape), variances.reshape(given.shape)
    else:
        noisy = gamma + torch.diag(extra)
        parts = [
            predict_folds(noisy, design, centred[:, c], seen[:, c], labels) for c in range(data.channels)
        ]
        errors, variances = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    smooth = variances - extra - _nugget(model) if noise_free else variances

    def shaped(x: Tensor) -> Tensor:
        field = domain.unflatten(x)
        if isinstance(domain, MaskedGrid):
            field = domain.fill(field)
        return field.reshape(fields.shape)

    return Validation(
        domain=domain,
        values=shaped(torch.where(torch.isfinite(given), given, torch.nan)),
        errors=shaped(errors),
        predictive_variance=shaped(variances),
        variance=shaped(smooth.clamp(min=0.0)),
        folds=labels,
        description=_describe(folds, labels),
    )


def _distinct(domain: Domain) -> Tensor:
    """Sites that are not the repetition of a pole."""
    keep = torch.ones(domain.shape, dtype=torch.bool)
    if isinstance(domain, Sphere) and domain.poles:
        keep[[0, -1], 1:] = False
    return domain.flatten(keep)


def _flat_labels(folds: str | int | Tensor, domain: Domain) -> str | int | Tensor:
    if not isinstance(folds, Tensor):
        return folds
    if tuple(folds.shape) != tuple(domain.shape) or folds.is_floating_point() or folds.dtype == torch.bool:
        raise ValueError(
            f"labels of folds must be whole numbers of shape {tuple(domain.shape)}, got {folds.dtype} of "
            f"shape {tuple(folds.shape)}"
        )
    return domain.flatten(folds.cpu().long())


def _noise(noise: float | Tensor, domain: Domain, n: int) -> Tensor:
    values = torch.as_tensor(noise).detach().cpu().double()
    if values.dim():
        if tuple(values.shape) != tuple(domain.shape):
            raise ValueError(
                f"noise must be one variance or one per site, {tuple(domain.shape)}, got "
                f"{tuple(values.shape)}"
            )
        values = domain.flatten(values)
    if not bool((torch.isfinite(values) & (values >= 0.0)).all()):
        raise ValueError(f"noise is a variance and must not be negative, got {float(values.min()):.3g}")
    return values.expand(n)


def _matrix(model: Model, data: Observations, domain: Domain) -> tuple[Tensor, bool]:
    """Covariance of the values of a field, and whether it is that of all channels."""
    if isinstance(model, FitResult):
        if model.kernel is None and model.domain != domain:
            raise ValueError(f"the fit is on {model.domain}, the fields on {domain}: validate on its domain")
        model = model.covariance if model.kernel is None else model.kernel
    channels = data.channels
    if isinstance(model, Kernel) and not isinstance(domain, Mesh | Graph | Sphere):
        _check_size(domain.size)
        # with its checks of the kernel and of equal sites
        covariance(model, domain, method="dense")
        with torch.no_grad():
            return kernel_matrix(model, domain, torch.device("cpu")).detach().clone(), False
    if isinstance(model, Kernel | Coregionalization):
        model = covariance(model, domain)
    if not isinstance(model, Covariance):
        raise TypeError(
            f"cross_validate needs a kernel, a covariance or a fit, got {type(model).__name__}: fit(...) "
            "gives one"
        )
    if model.domain != domain:
        raise ValueError(f"the covariance is on {model.domain}, the fields on {domain}")
    if model.channels not in (None, channels):
        raise ValueError(f"the covariance has {model.channels} channels, the fields {channels}")
    joint = model.channels is not None
    _check_size(domain.size * (channels if joint else 1))
    with torch.no_grad():
        dense = model.to_dense()
    count = model.channels or 1
    places = torch.arange(dense.shape[0]).reshape(count, *domain.shape)
    kept = domain.flatten(places).reshape(-1)
    return dense[kept[:, None], kept], joint


def _check_size(size: int) -> None:
    if size > DENSE_VALUES:
        raise ValueError(
            f"cross-validation inverts a dense {size} x {size} matrix; the limit is {DENSE_VALUES}: validate "
            "on a part of the domain (Points of some sites, a masked grid)"
        )


def _nugget(model: Model) -> float:
    """Variance of the nugget of a kernel."""
    if isinstance(model, FitResult) and model.kernel is not None:
        model = model.kernel
    if not isinstance(model, Kernel):
        raise ValueError(
            "noise_free=True needs a kernel, whose nugget can be told from the rest of the field; got "
            f"{type(model).__name__}"
        )
    if isinstance(model, AdditiveKernel):
        return sum(_nugget(part) for part in model.kernels)
    return float(model.variance.detach().reshape(-1)[0]) if isinstance(model, Nugget) else 0.0


def _describe(folds: str | int | Tensor, labels: Tensor) -> str:
    number = len(labels[labels >= 0].unique())
    if isinstance(folds, str) and folds == "loo":
        return "one site left out"
    if isinstance(folds, str):
        return f"{number} blocks left out in turn"
    return f"{number} folds"
