"""RigL with a structure beside RigL without, on a network of convolutions: ResNet-8 on CIFAR-10.

    python experiments/sweep.py --grid=patterns_resnet8 --data_dir=data
    python experiments/compare.py experiments/results/patterns_resnet8

Papers: as in the grid `patterns`, which has more seeds and dense layers.

Hardware and time: one core a run of an AMD EPYC; 4 runs of 3 epochs, 11 minutes of one core.
Software: jax 0.10.2, commit ac00fbb.

Expected test accuracy in percent, one seed, so a difference of a point may be chance:

    unstructured, uniform, 50 %    66.61
    2:4, 50 %                      66.31
    unstructured, ERK, 90 %        63.45
    4x4 blocks, ERK, 90 %          59.68
"""

from experiments.sweeping.grid import Grid

_LENGTH = {"epochs": 3, "eval_every": 351, "checkpoint_every": 351}
# Not the first convolution, which has 3 input channels, nor the classifier.
_INNER = {"pattern_layers": "^(?!conv1/|fc/)"}

GRIDS = tuple(
    Grid("cifar", "resnet8", ("rigl",), (sparsity,), 1, _LENGTH | flags, variant)
    for sparsity, flags, variant in (
        (0.5, {"distribution": "uniform"}, ""),
        (0.5, {"distribution": "uniform", "pattern": "2:4", **_INNER}, "2of4"),
        (0.9, {}, ""),
        (0.9, {"pattern": "4x4", **_INNER}, "4x4"),
    )
)
