"""EAST at extreme sparsity, without each of its parts, and beside other methods: CIFAR-10.

    python experiments/sweep.py --grid=extreme --data_dir=data
    python experiments/compare.py experiments/results/extreme

Paper: Li et al., "Pushing the Limits of Sparsity: A Bag of Tricks for Extreme Pruning", TMLR 2025.
Its ResNet-34 is a narrow one here (`resnet34_narrow`, 1,332,272 weights), and all methods have its
recipe in 10 epochs of its 250 (3,510 steps).

Hardware and time: one core a run, AMD EPYC (85 runs) and Intel Xeon (30), some of it beside other
work; 115 runs, 1 to 30 minutes each, 7.1 hours of one core. An epoch by active weights takes 8 s,
with dense kernels a minute. A run of GraNet-ST, which begins with half of the weights, takes 6.6
minutes (median), one of the other methods 1.3 to 3.0.
Software: jax 0.10.2 and 0.11.2; the result files name their commits, which differ in speed alone.

Expected test accuracy in percent, mean ± standard deviation of n = 3 seeds; a network that is cut
has no path from image to logits, and guesses (10.00):

                 99 %          99.9 %        99.99 %
    set          56.35 ± 0.17  16.19 ± 4.65  cut
    rigl         56.93 ± 0.71  40.60 ± 1.36  cut
    granet_st    64.70 ± 0.23  44.98 ± 0.83  16.83 ± 1.47
    east         58.42 ± 0.73  41.39 ± 0.71  17.34 ± 2.70
"""

from typing import Any

from experiments.sweeping.grid import Grid

_SPARSITIES = (0.999, 0.9999, 0.9995, 0.99, 0.995)  # the most interesting ones first


def _part(
    schedules: tuple[str, ...],
    sparsities: tuple[float, ...] = _SPARSITIES,
    *,
    seeds: int = 3,
    variant: str = "",
    **flags: Any,
) -> Grid:
    """Some methods of the study, with EAST's recipe and length."""
    shared = {"recipe": "east", "epochs": 10, "eval_every": 351, "checkpoint_every": 1755}
    options = {**shared, "execution": "sparse", **flags}
    return Grid("cifar", "resnet34_narrow", schedules, sparsities, seeds, options, variant)


GRIDS = (
    _part(("east", "rigl", "set")),
    _part(("static",), (0.999, 0.99, 0.995)),  # sparser static masks cut the network: refused
    _part(("east",), variant="no_cycles", cycles=0),
    _part(("east",), variant="no_dyrelu", dyrelu=False),
    _part(("east",), variant="no_sharing", weight_sharing=False),
    _part(("granet_st",), (0.999, 0.9999, 0.99, 0.995)),
    _part(("rigl_itop",), (0.999, 0.9999, 0.9995, 0.99), seeds=1),  # EAST without any of its parts
)
