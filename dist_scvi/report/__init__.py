"""The report of a run: what was trained, how good it is, and what to do next, as one HTML file and as JSON."""
