"""All methods at several sparsities on full Fashion-MNIST: LeNet-300-100 and LeNet-5.

    python experiments/sweep.py --grid=fashion_mnist --data_dir=data
    python experiments/compare.py experiments/results/fashion_mnist

Papers: the methods are those of Mocanu et al. 2018 (SET), Evci et al. 2020 (RigL), Dettmers and
Zettlemoyer 2019 (SNFS), Zhu and Gupta 2017 (GMP) and Liu et al. 2021 (GraNet, GraNet-ST). The
networks and the data are not those of their tables. One recipe for all; nothing was tuned.

Hardware and time: two CPU cores of an AMD EPYC, one core a run; 190 runs, 2.3 hours of one core.
Software: jax 0.10.2, commit 51bac57.

Expected test accuracy in percent, mean ± standard deviation, at 98 %:

                          dense         static           rigl      granet_st         granet
    LeNet-300-100, n=5    89.81 ± 0.19  85.79 ± 0.25   86.90 ± 0.32  88.39 ± 0.21  88.56 ± 0.23
    LeNet-5, n=3          90.75 ± 0.33  30.76 ± 35.95  83.69 ± 0.64  88.02 ± 0.31  88.10 ± 0.11
"""

from experiments.sweeping.grid import Grid

_METHODS = ("dense", "static", "set", "rigl", "snfs", "gmp", "granet", "granet_st")

GRIDS = (
    Grid(  # 19 epochs of 54,000 images
        "fashion_mnist",
        "lenet_300_100",
        _METHODS,
        (0.9, 0.95, 0.98, 0.99),
        seeds=5,
        flags={"steps": 8000, "eval_every": 400, "checkpoint_every": 2000},
    ),
    Grid(  # 9.5 epochs
        "fashion_mnist",
        "lenet5",
        _METHODS,
        (0.95, 0.98),
        seeds=3,
        flags={"steps": 4000, "eval_every": 200, "checkpoint_every": 1000},
    ),
)
