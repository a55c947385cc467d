"""What attacks ask of a network, asked once: predictions on every image, reduced to numbers and streamed to disk."""
