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

Hardware and time: some 10 hours of one core of an AMD EPYC or an Intel Xeon. 363 of 366 runs are
finished. The others, LeNet-5's static masks at 99.9 %, are refused: no path leads from an image to
a logit.
Software: jax 0.10.2, commits c1c8852 to e7499e2.

Expected test accuracy in percent, LeNet-300-100, mean of three seeds (dense 89.97):

              79.03 %  89.26 %  94.5 %  97.75 %  99.08 %  99.9 %
    static      89.29    88.71   87.67    85.87    81.84   11.80
    magnitude   89.15    88.58   87.89    81.73    10.00   10.00
    snip        89.22    88.80   88.10    86.29    82.36   10.00
    grasp       88.34    88.18   87.59    84.57    72.82   10.00
    synflow     89.30    88.72   88.21    86.93    84.75   66.71
    rigl        89.51    88.88   88.22    87.10    85.45   67.14
    granet_st   89.41    89.04   88.93    88.33    87.72   80.08
    gmp         89.75    89.65   89.53    88.95    87.61   79.73
    rewound     90.03    89.80   89.49    89.22    88.47   81.42

The last row are tickets. 10.00 is chance: one round of scores cut the network, or nearly.
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
