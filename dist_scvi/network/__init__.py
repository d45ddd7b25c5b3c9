"""The networks of scvi-tools, their likelihoods, and the specification to rebuild them."""
