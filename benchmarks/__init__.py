"""Measurements: each prints a table against its limit or its peer and writes it to RESULTS.md."""
