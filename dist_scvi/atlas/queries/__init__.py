"""Queries of a minified atlas, without the counts: filters, answers, expression by group."""
