"""Γ made of other covariances."""
