"""Sparse from the start or pruned on the way: Fashion-MNIST, LeNet-300-100 and LeNet-5.

    python experiments/sweep.py --grid=from_the_start --data_dir=data
    python experiments/compare.py experiments/results/from_the_start

Papers: masks before training are random (ERK), of the largest initial weights, or by the scores of
Lee et al. 2019 (SNIP), Wang et al. 2020 (GraSP) and Tanaka et al. 2020 (SynFlow). Lottery tickets
are those of Frankle and Carbin 2019, rewound to step 0, and learning-rate rewinding is that of
Renda et al. 2020, to step 0 too. A ticket of r rounds has trained r + 1 times as long as the other
runs. GMP, RigL and GraNet-ST prune or exchange weights while they train. The recipe is that of the
grid `fashion_mnist`; nothing was tuned.

The sparsities are those of tickets after 7, 10, 13, 17, 21 and 31 rounds of 20 %: 79 to 99.9 %.
"""

from experiments.sweeping.grid import Grid, Tickets

ROUNDS = (7, 10, 13, 17, 21, 31)
SPARSITIES = tuple(round(1 - 0.8**r, 4) for r in ROUNDS)
SEEDS = 3
_LONG = {"steps": 8000, "eval_every": 400, "checkpoint_every": 4000}
_SHORT = {"steps": 4000, "eval_every": 200, "checkpoint_every": 2000}
_ARMS = ("rewind", "learning_rate_rewinding")
_METHODS = ("dense", "static", "magnitude", "snip", "grasp", "synflow", "gmp", "rigl", "granet_st")

GRIDS = tuple(
    grid
    for model, length in (("lenet_300_100", _LONG), ("lenet5", _SHORT))
    for grid in (
        Grid("fashion_mnist", model, _METHODS, SPARSITIES, SEEDS, length),
        Tickets(model, _ARMS, ROUNDS, SEEDS, length),
    )
)
