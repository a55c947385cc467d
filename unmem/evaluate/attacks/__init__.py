"""Attacks, one component a file: scores and matches in, no metric computed here."""
