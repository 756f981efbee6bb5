"""Γ on grids: regular, masked and rectilinear."""
