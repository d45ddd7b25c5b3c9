"""`train`, and everything it calls."""
