"""Denoisers, one component a file."""
