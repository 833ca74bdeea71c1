"""Measurements behind the README: `python -m benchmarks --help`."""
