"""Γ on scattered points, and on the sites of any domain with coordinates."""
