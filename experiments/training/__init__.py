"""One training run: what it is, its steps, its phases, and how they are executed."""
