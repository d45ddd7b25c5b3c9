"""Make a model from a trained one: scArches, SCANVI from SCVI."""
