"""Studies over one training: checkpoints, what is done with each, and figures of it."""
