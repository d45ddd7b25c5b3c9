"""The networks of scvi-tools, their likelihoods, and the record that rebuilds them."""
