"""Queries of a minified atlas, without the counts: filters, expression, differential expression, markers."""
