"""The metrics of a run: their file, the history of a model, and the services that receive them."""
