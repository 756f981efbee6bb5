"""Windows of fields on an unlimited lattice."""
