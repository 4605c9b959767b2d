"""Many runs: the grids of the published tables, and the processes that work through them."""
