"""Command lines: flags, their defaults, and what they choose."""
