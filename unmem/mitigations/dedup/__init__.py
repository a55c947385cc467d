"""Duplicates in image and caption data: signatures, searches within a radius, groups, and the job around them."""
