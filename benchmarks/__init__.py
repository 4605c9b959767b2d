"""Measurements, run by hand: `python -m benchmarks.events`, `python -m benchmarks.steps`."""
