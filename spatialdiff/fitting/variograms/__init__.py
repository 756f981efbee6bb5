"""Empirical variograms and the kernels that fit them."""
