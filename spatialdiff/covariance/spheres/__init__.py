"""Isotropic Γ on latitude-longitude grids of the sphere."""
