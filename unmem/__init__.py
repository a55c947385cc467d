"""unmem: train image diffusion models that do not hand back their training data, and prove it."""

__version__ = "0.1.0"
