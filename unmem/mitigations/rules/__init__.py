"""Update rules of the training mitigations that stand on plain training."""
