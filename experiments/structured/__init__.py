"""Structured pruning: arms that make a trained network narrower, their stages, and their table."""
