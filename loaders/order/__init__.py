"""Which row is read when: arithmetic on numpy arrays, without files."""
