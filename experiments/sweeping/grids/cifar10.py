"""RigL and GraNet-ST beside a dense network on CIFAR-10: ResNet-8, a short look.

    python experiments/sweep.py --grid=cifar10 --seeds=2 --data_dir=data
    python experiments/compare.py experiments/results/cifar10 --against=rigl

Papers: Evci et al., "Rigging the Lottery", ICML 2020; Liu et al., "Sparse Training via Boosting
Pruning Plasticity with Neuroregeneration", NeurIPS 2021. The recipe is GraNet's, in 6 epochs of its
160, so only the order of the methods means something.

Hardware and time: one core a run of an AMD EPYC that other work used too; 10 runs (2 seeds; the
third was not measured), 5 to 16 minutes each, 1.4 hours of one core.
Software: jax 0.10.2, commit ac00fbb.

Expected test accuracy in percent, mean ± standard deviation of n = 2 seeds; dense 73.68 ± 0.03:

                 90 %          95 %
    rigl         66.49 ± 0.82  62.98 ± 0.65
    granet_st    66.87 ± 0.16  65.19 ± 0.62
"""

from experiments.sweeping.grid import Grid

GRIDS = (
    Grid(
        "cifar",
        "resnet8",
        ("dense", "rigl", "granet_st"),
        (0.9, 0.95),
        seeds=3,
        flags={"epochs": 6, "eval_every": 351, "checkpoint_every": 351},
    ),
)
