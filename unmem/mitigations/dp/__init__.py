"""Training with a differential-privacy guarantee: plan, accounting, per-example gradients, and the private step."""
