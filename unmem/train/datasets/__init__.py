"""Sources of images, one component a file."""
