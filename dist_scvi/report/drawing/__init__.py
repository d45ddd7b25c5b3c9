"""Figures of the report; the only place of this package that names matplotlib."""
