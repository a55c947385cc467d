"""Feature extractors for quality measures, one component a file."""
