"""Log-likelihoods of Gaussian fields as functions of a covariance's parameters."""
