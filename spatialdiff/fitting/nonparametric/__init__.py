"""Γ from data without a family of kernels."""
