"""RigL with a structure beside RigL without, at the same density: LeNet-300-100.

    python experiments/sweep.py --grid=patterns --data_dir=data
    python experiments/compare.py experiments/results/patterns

Papers: Evci et al., "Rigging the Lottery", ICML 2020 (RigL); Mishra et al., "Accelerating Sparse
Deep Neural Networks", 2021 (2:4); Gray et al., "GPU kernels for block-sparse weights", 2017
(blocks).

Hardware and time: one core a run of an AMD EPYC; 12 runs, 5 minutes of one core.
Software: jax 0.10.2, commit 9ce221b.

Expected test accuracy in percent, mean ± standard deviation of n = 3 seeds:

    unstructured, uniform, 50 %    89.11 ± 0.14
    2:4, 50 %                      89.03 ± 0.04
    unstructured, ERK, 90 %        88.10 ± 0.04
    4x4 blocks, ERK, 90 %          88.06 ± 0.08
"""

from experiments.sweeping.grid import Grid

_LENGTH = {"steps": 4000, "eval_every": 400, "checkpoint_every": 2000}

GRIDS = tuple(
    Grid("fashion_mnist", "lenet_300_100", ("rigl",), (sparsity,), 3, _LENGTH | flags, variant)
    for sparsity, flags, variant in (
        # 2:4 fixes the density of every layer, so the runs beside it are uniform too.
        (0.5, {"distribution": "uniform"}, ""),
        (0.5, {"distribution": "uniform", "pattern": "2:4"}, "2of4"),
        (0.9, {}, ""),
        # The classifier has no blocks, as 4 does not divide its 10 outputs.
        (0.9, {"pattern": "4x4", "pattern_layers": "Dense_[01]/"}, "4x4"),
    )
)
