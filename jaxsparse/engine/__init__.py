"""Inference by active weights as one call: a forward pass as planes and taps, and what runs it."""
