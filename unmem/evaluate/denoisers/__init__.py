"""Pipelines as attacks see them, one kind a file."""
