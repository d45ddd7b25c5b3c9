"""Files of scvi-tools, read without running code from them, and written."""
