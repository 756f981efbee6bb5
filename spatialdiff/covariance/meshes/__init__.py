"""Γ by sparse precisions: the Matérn equation on meshes and graphs."""
