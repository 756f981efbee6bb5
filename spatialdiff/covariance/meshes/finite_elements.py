r"""Linear finite elements: the lumped mass matrix and the stiffness matrix of a mesh.

With the hat functions ``φ_i``: ``c_i = ∫ φ_i`` (the mass matrix with its rows summed to the diagonal) and
``G_ij = ∫ ∇φ_i·∇φ_j``. On an element of dimension ``m``, volume ``V``, edges ``E`` (rows ``v_i - v_0``) and
Gram matrix ``M = E Eᵀ`` the local stiffness is ``V ĝ M⁻¹ ĝᵀ`` with ``ĝ = (-1, I)ᵀ``, which needs no
coordinates of the surface the element lies in. With ``M = L Lᵀ`` it is ``B_eᵀ B_e``, ``B_e = √V L⁻¹ ĝᵀ``, so
that ``G = BᵀB`` with one sparse ``B``. (Lindgren, Rue & Lindström 2011, appendix A.2, for triangles.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.domains.mesh import Mesh


def lumped_mass(mesh: Mesh) -> Tensor:
    """``c_i = ∫ φ_i``, ``(n,)`` float64; sums to the volume of the mesh."""
    corners = mesh.elements
    share = (mesh.volumes() / corners.shape[1])[:, None].expand(corners.shape)
    return torch.zeros(mesh.size, dtype=torch.float64).index_add(0, corners.reshape(-1), share.reshape(-1))


def stiffness_root(mesh: Mesh) -> Any:
    """``B`` with ``G = BᵀB``: a scipy CSR matrix of shape ``(elements · m, n)``."""
    from scipy.sparse import csr_matrix

    edges = mesh.edges()
    count, m, _ = edges.shape
    gradient = torch.cat([-torch.ones(m, 1), torch.eye(m)], dim=1).double()
    lower = torch.linalg.cholesky(edges @ edges.mT)
    local = torch.linalg.solve_triangular(lower, gradient.expand(count, m, m + 1), upper=False)
    local = mesh.volumes().sqrt()[:, None, None] * local
    columns = mesh.elements[:, None, :].expand(count, m, m + 1)
    rows = torch.arange(count * m).reshape(count, m, 1).expand(count, m, m + 1)
    triplets = (rows.reshape(-1).numpy(), columns.reshape(-1).numpy())
    return csr_matrix((local.reshape(-1).numpy(), triplets), shape=(count * m, mesh.size))
