"""The FLOPs of a whole run in RigL's accounting: one function for plans and finished runs.

A forward pass costs f, and the backward pass 2 f: f for the gradient of the activations, f for that
of the weights. S stands for the active weights and D for all of them. A step costs

    3 f_S

or, if the method needs the gradient of inactive weights too,

    2 f_S + f_D

A step is charged at the masks in force at that step, so nothing is assumed about how they change.
These are theoretical, as in `jaxsparse.tracing.flops`: masked training on dense kernels saves none
of them in time.

Reference: Evci et al., "Rigging the Lottery", ICML 2020, appendix on FLOPs calculations.
"""

import itertools
from collections.abc import Mapping
from typing import get_args

from jaxsparse.tracing.flops import sparse_flops
from jaxsparse.types import DenseGradient


def training_flops(
    dense: Mapping[str, int],
    densities: Mapping[int, Mapping[str, float]],
    total_steps: int,
    *,
    dense_gradient: DenseGradient = "never",
) -> float:
    """Returns the FLOPs of all steps with one example each; multiply by the batch size for a run.

    A run without sparsity costs `training_flops(dense, {0: {}}, total_steps)`: the denominator of
    the multipliers that papers print.

    An event uses the dense gradient of the step before it, at the masks before it. It is charged
    whether or not that step's optimizer update is skipped, as the pass is the same. RigL's formula
    (3 f_S T + 2 f_S + f_D) / (T + 1) has one event in T + 1 steps. Here an `update_interval` of T
    has one in T, and RigL has none in the last quarter of training. Nothing grows at the very last
    step, so an event there is not charged.

    Args:
      dense: dense forward FLOPs of one example by path, from `layer_flops`. Products of parameters
        alone are in it; they are done once a batch, so multiplying by the batch size overcounts
        them.
      densities: by step, the densities in [0, 1] by path of the masks after that step: the start
        (step 0) and every event. Leaves that are missing count as dense.
      total_steps: length of the run; 0 costs nothing.
      dense_gradient: `method.dense_gradient`. "never" leaves the term out for any method, as
        GraNet's published numbers do.

    Raises:
      ValueError: step 0 is missing, a step lies beyond the end, or `dense_gradient` is none of the
        three.

    >>> rigl = {0: {"kernel": 0.2}, 100: {"kernel": 0.2}}  # f_D = 100, f_S = 20
    >>> round(training_flops({"kernel": 100}, rigl, 101, dense_gradient="events") / 101, 4)
    60.7921
    >>> static = training_flops({"kernel": 100}, {0: {"kernel": 0.2}}, 10)
    >>> static, static / training_flops({"kernel": 100}, {0: {}}, 10)
    (600.0, 0.2)
    """
    steps = sorted(densities)
    if not steps or steps[0] != 0:
        raise ValueError(f"the densities start at step {steps[0] if steps else None}, not at 0")
    if steps[-1] > total_steps:
        raise ValueError(f"step {steps[-1]} is beyond the {total_steps} steps of the run")
    if dense_gradient not in get_args(DenseGradient):
        raise ValueError(f"dense_gradient {dense_gradient!r} must be 'never', 'events' or 'always'")
    whole, total = sum(dense.values()), 0.0
    for start, stop in itertools.pairwise([*steps, total_steps]):
        forward = sparse_flops(dense, densities[start])
        num_dense = {"never": 0, "events": int(stop < total_steps), "always": stop - start}
        total += 3.0 * forward * (stop - start) + num_dense[dense_gradient] * (whole - forward)
    return total
