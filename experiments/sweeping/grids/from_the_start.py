"""Sparse from the start or pruned on the way: Fashion-MNIST, LeNet-300-100 and LeNet-5.

    python experiments/sweep.py --grid=from_the_start --data_dir=data
    python experiments/compare.py experiments/results/from_the_start

Papers: masks before training are random (ERK), of the largest initial weights, or by the scores of
Lee et al. 2019 (SNIP), Wang et al. 2020 (GraSP) and Tanaka et al. 2020 (SynFlow). Lottery tickets
are those of Frankle and Carbin 2019, rewound to step 0, and learning-rate rewinding is that of
Renda et al. 2020, to step 0 too. A ticket of r rounds has trained r + 1 times as long as the other
runs. GMP, RigL and GraNet-ST prune or exchange weights while they train. The recipe is that of the
grid `fashion_mnist`; nothing was tuned. LeNet-5 computes by active weights where it is sparse from
the start, and so do its tickets: on one core that is 1.7 to 2 times as fast at 89 and 99 %, and the
same up to rounding.

The sparsities are those of tickets after 7, 10, 13, 17, 21 and 31 rounds of 20 %: 79 to 99.9 %.

Hardware and time: about 6 hours of one core of an AMD EPYC, estimated; 202 of 366 runs are
finished.
Software: jax 0.10.2, commits c1c8852 to 5963cc5.

Expected test accuracy in percent, LeNet-300-100, n = 1 (seed 0 alone; dense 90.04):

              79.03 %  89.26 %  94.5 %  97.75 %  99.08 %  99.9 %
    static      89.18    88.66   87.64    85.75    82.00    9.99
    magnitude   89.30    88.62   87.93    81.60
    snip        89.09    88.57   87.96    86.36    82.94
    grasp       88.29    88.06   87.45    84.21    75.43
    synflow     89.28    88.64   88.08    86.97    84.78   66.72
    gmp         89.62    89.65   89.40    88.80    87.22   79.01
    rigl        89.27    88.69   88.18    87.28    85.69   72.36

Empty cells: one round of scores left no path from image to logit, and the run refused to start. So
did those of magnitude at 99.08 %, and of SNIP and GraSP at 99.9 %.
"""

from typing import Any

from experiments.sweeping.grid import Grid, Tickets

ROUNDS = (7, 10, 13, 17, 21, 31)
SPARSITIES = tuple(round(1 - 0.8**r, 4) for r in ROUNDS)
SEEDS = 3
_ARMS = ("rewind", "learning_rate_rewinding")
_AT_INIT = ("magnitude", "snip", "grasp", "synflow")


def _grids(model: str, execution: str, **length: Any) -> tuple[Grid | Tickets, ...]:
    """The study of one network; `execution` is that of runs which are sparse from the start."""
    by = {} if execution == "masked" else {"execution": execution}
    grid = lambda methods, **flags: Grid(
        "fashion_mnist", model, methods, SPARSITIES, SEEDS, length | flags
    )
    return (
        grid(("dense", "gmp", "granet_st")),
        grid(("static", "rigl"), **by),
        grid(_AT_INIT, allow_cut=True, **by),
        Tickets(model, _ARMS, ROUNDS, SEEDS, length | by),
    )


GRIDS = (
    *_grids("lenet_300_100", "masked", steps=8000, eval_every=400, checkpoint_every=4000),
    *_grids("lenet5", "sparse", steps=4000, eval_every=200, checkpoint_every=2000),
)
