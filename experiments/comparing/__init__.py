"""Finished runs side by side: seeds, statistics and tables."""
