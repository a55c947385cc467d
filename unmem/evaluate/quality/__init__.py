"""Quality measures, one component a file."""
