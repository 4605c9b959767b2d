"""Lottery tickets and ablations: rounds of pruning, arms that retrain a mask, their tables."""
