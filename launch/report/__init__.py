"""`dist-scvi report`: a page about a finished run."""
