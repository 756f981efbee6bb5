"""Fields given observations: kriging, conditional simulation, filling of missing cells."""
