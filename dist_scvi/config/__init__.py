"""The keys of a configuration, and reading them from YAML."""
