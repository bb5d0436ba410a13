"""Built-in problems, one a file."""
