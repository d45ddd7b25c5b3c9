"""Expression that the decoder expects, and differential expression."""
