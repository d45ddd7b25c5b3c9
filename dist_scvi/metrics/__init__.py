"""The metrics of a run: the file they are in, the history of a model, and the services they are sent to."""
