"""The grids of runs behind the tables of README.md, one file a grid, each with its `GRIDS`."""
