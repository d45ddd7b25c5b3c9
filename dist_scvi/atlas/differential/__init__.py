"""Differential expression and markers of an atlas: quantile sketches of leaves, and all pairs of sampled cells."""
