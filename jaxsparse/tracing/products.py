"""The FLOPs of a single matrix product or convolution, told from its equation: 2 per multiply-add.

Padding of a convolution counts like entries of the input, as in the tables of papers. A dilation of
the input, as in a transposed convolution with a stride, puts zeros between its entries. Along such
an axis neither these zeros nor padding count, only entries of the input do. Dilation of the kernel,
groups of channels and groups of a batch change nothing but the shapes. In a ragged product every
row meets only the kernel of its group.

XLA's own count (`cost_analysis`) of a product is the same, with two differences: it leaves out all
padding, and it counts a ragged product as CPUs compute it, every row with the kernels of all
groups. It counts the body of a loop once.
"""

import math
from typing import Any

import numpy as np


def dot_flops(eqn: Any) -> int:
    """Returns the FLOPs of a `dot_general`: 2 for each output and each contracted entry."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return _dot_flops(eqn, contracted)


def ragged_dot_flops(eqn: Any) -> int:
    """Returns the FLOPs of a `ragged_dot_general`, which include rows that are in no group."""
    dimensions = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = dimensions.dot_dimension_numbers
    is_cut = dimensions.lhs_ragged_dimensions[0] in contracted
    # If groups cut the contracted axis, each output belongs to one group, along its first axis.
    num_groups = eqn.outvars[0].aval.shape[0] if is_cut else 1
    return _dot_flops(eqn, contracted) // max(num_groups, 1)


def _dot_flops(eqn: Any, contracted: Any) -> int:
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def conv_flops(eqn: Any) -> int:
    """Returns the FLOPs of a `conv_general_dilated`."""
    params, dimensions = eqn.params, eqn.params["dimension_numbers"]
    image, kernel = (x.aval.shape for x in eqn.invars)
    out = eqn.outvars[0].aval.shape
    # The kernel's input dimension is already that of one group.
    found = 2 * math.prod(out[axis] for axis in dimensions.out_spec[:2])
    found *= kernel[dimensions.rhs_spec[1]]
    for i, axis in enumerate(dimensions.out_spec[2:]):
        size, taps = image[dimensions.lhs_spec[2 + i]], kernel[dimensions.rhs_spec[2 + i]]
        if params["lhs_dilation"][i] == 1:
            found *= out[axis] * taps
            continue
        first = np.arange(out[axis]) * params["window_strides"][i] - params["padding"][i][0]
        steps = range(0, taps * params["rhs_dilation"][i], params["rhs_dilation"][i])
        found *= sum(_num_entries(first + step, size, params["lhs_dilation"][i]) for step in steps)
    return found


def _num_entries(positions: np.ndarray, size: int, dilation: int) -> int:
    """How many positions of a dilated axis hold entries of the axis."""
    is_entry = (positions % dilation == 0) & (positions >= 0) & (positions < size * dilation)
    return int(np.count_nonzero(is_entry))


PRODUCTS = {
    "conv_general_dilated": conv_flops,
    "dot_general": dot_flops,
    "ragged_dot_general": ragged_dot_flops,
    "scaled_dot": dot_flops,
}
"""The function that counts, by the primitive's name; the first two operands are multiplied."""
