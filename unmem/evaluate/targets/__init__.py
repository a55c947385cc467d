"""What can be attacked, one component a file."""
