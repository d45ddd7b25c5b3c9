"""Scores of a latent space: how well batches are mixed and labels kept apart, under the names of scib-metrics."""
