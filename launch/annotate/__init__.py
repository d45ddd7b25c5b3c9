"""`dist-scvi annotate`: labels of new cells."""
