r"""Matérn fields on graphs: ``Γ = σ² (2ν/ℓ² + L)^{-ν}`` with the graph Laplacian ``L`` (Borovitskiy et al.
2021, eq. 11).

``L = diag(degrees) - W``, or the symmetrically normalised ``diag(degrees)^{-1/2} L diag(degrees)^{-1/2}``.
For an integer ν the precision is a sparse polynomial of ``L``; other ν by a rational function (`power`). The
length scale counts edges of unit weight. ``Γ`` of this definition has variance ``σ² (ℓ²/2ν)^ν`` for a
constant field and less for the rest: ``normalize`` brings the variances to ``σ²``.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels
from spatialdiff.covariance.meshes.graph_basis import EIGEN_SITES, GraphBasis
from spatialdiff.covariance.meshes.power import PowerCovariance, matern_of
from spatialdiff.covariance.meshes.sparse import ShiftedOperator
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains.graph import Graph


class GraphMaternCovariance(PowerCovariance):
    """``Γ`` of the module on the nodes of a graph; exact for integer ν, to ``tolerance`` otherwise.

    Args:
        kernel: `Matern`, for its ν, one length scale and variance.
        domain: the graph.
        channels: see `Covariance`.
        laplacian: ``"combinatorial"`` or ``"normalized"``.
        root: ``"auto"``: exact, and square unless ν is odd; ``"symmetric"``: always square, ``A^{-ν/2}``.
        tolerance: largest relative error of the rational function (of Γ: twice that).
        normalize: ``"none"``: the formula above; ``"mean"``: the variance is σ² on average over the nodes;
            ``"site"``: at every node. Derivatives of what is normalised: up to 1024 nodes.

    Raises:
        TypeError: a domain that is not a graph.
        ValueError: a kernel that is not an isotropic Matérn; nodes without edges under the normalised
            Laplacian.
    """

    method = "graph"
    domain: Graph

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Graph,
        channels: Channels = None,
        *,
        laplacian: str = "combinatorial",
        root: str = "auto",
        tolerance: float = 1e-8,
        normalize: str = "none",
    ) -> None:
        if not isinstance(domain, Graph):
            raise TypeError(f"GraphMaternCovariance needs a Graph, got {type(domain).__name__}.")
        if laplacian not in ("combinatorial", "normalized"):
            raise ValueError(
                'GraphMaternCovariance: laplacian must be "combinatorial" or "normalized", got '
                f"{laplacian!r}."
            )
        matern, nu = matern_of(kernel, "GraphMaternCovariance")
        super().__init__(
            matern,
            domain,
            channels,
            operator=ShiftedOperator(_incidence_root(domain, laplacian == "normalized")),
            power=nu,
            root=root,
            tolerance=tolerance,
            normalize=normalize,
        )
        self.nu, self.laplacian = nu, laplacian
        if normalize != "site" and domain.size <= EIGEN_SITES:
            self.basis = GraphBasis(domain, laplacian == "normalized")

    def spatial_eigenvalues(self) -> Tensor:
        """``s² (2ν/ℓ² + λ_k)^{-ν}`` in `GraphBasis`, ``(*batch, n)``."""
        if not isinstance(self.basis, GraphBasis):
            raise ValueError(
                f"Γ on {self.domain} is diagonal in no fast basis: that takes at most {EIGEN_SITES} nodes "
                f'and normalize "none" or "mean" (here {self.normalize!r}).'
            )
        shifted = self._factor("shift")[..., :1] + self.basis.eigenvalues.to(self.device)
        scale = self._factor("scale")[..., :1].square()
        if self.is_integer:
            return scale * shifted.pow(-self.nu)
        # what the rational root makes of each
        r = self._rational()
        half = torch.full_like(shifted, r.constant)
        for weight, pole in zip(r.weights, r.poles, strict=True):
            half = half + weight / (shifted + pole)
        return scale * (shifted.pow(-self.full_powers) * half).square()

    def _shift(self) -> Tensor:
        assert self.kernel is not None
        ell: Tensor = self.kernel.lengthscale.double().reshape(*self.batch_shape, 1)
        return (2 * self.nu / ell.square()).expand(*self.batch_shape, self.domain.size)

    def _site_variance(self) -> Tensor:
        assert self.kernel is not None
        result: Tensor = self.kernel.variance.double().reshape(*self.batch_shape, 1)
        return result

    def _plain_scale(self) -> Tensor:
        return self._site_variance().sqrt().expand(*self.batch_shape, self.domain.size)

    def _report(self) -> CovarianceReport:
        exact, text = self._describe()
        reason = f"(2ν/ℓ² + L)^-ν, ν = {self.nu:g}, {self.laplacian} Laplacian; normalised: {self.normalize}"
        error = None
        if not exact:
            with torch.no_grad():
                error = 2 * self._rational().error
        return CovarianceReport(
            self.method,
            exact=exact,
            reason=f"{reason}; {text}",
            relative_error=error,
            log_det=self._describe_log_det(),
        )


def _incidence_root(graph: Graph, normalized: bool) -> object:
    from scipy.sparse import csr_matrix

    edges, weights = graph.edges, graph.weights
    count = len(edges)
    values = torch.stack([weights.sqrt(), -weights.sqrt()], dim=-1)
    if normalized:
        degrees = graph.degrees
        if bool((degrees == 0).any()):
            raise ValueError(
                f"GraphMaternCovariance: {int((degrees == 0).sum())} nodes have no edges (first: "
                f"{int((degrees == 0).nonzero()[0])}), the normalised Laplacian is not defined; remove them "
                "or use the combinatorial one."
            )
        values = values * degrees.rsqrt()[edges]
    rows = torch.arange(count)[:, None].expand(count, 2)
    return csr_matrix(
        (values.reshape(-1).numpy(), (rows.reshape(-1).numpy(), edges.reshape(-1).numpy())),
        shape=(count, graph.size),
    )
