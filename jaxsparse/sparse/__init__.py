"""Sparse execution: layers whose time and memory fall with the number of active weights."""

from jaxsparse.sparse.allocator import keep_memory
from jaxsparse.sparse.choice import (
    BreakEven,
    LayerShape,
    break_even,
    choose_rooms,
    is_mostly_sparse,
)
from jaxsparse.sparse.convolution import Layout, sparse_conv, sparse_dot
from jaxsparse.sparse.kernels import Backend, backend
from jaxsparse.sparse.measure import LayerTimes, Measured, benchmark, measured_break_even
from jaxsparse.sparse.norm import batch_norm
from jaxsparse.sparse.positions import Positions, check_positions, to_dense, to_mask, to_sparse
from jaxsparse.sparse.states import (
    compress,
    compress_leaves,
    count_active,
    expand,
    expand_leaves,
    find_positions,
)
from jaxsparse.sparse.window import Window

__all__ = [
    "Backend",
    "BreakEven",
    "LayerShape",
    "LayerTimes",
    "Layout",
    "Measured",
    "Positions",
    "Window",
    "backend",
    "batch_norm",
    "benchmark",
    "break_even",
    "check_positions",
    "choose_rooms",
    "compress",
    "compress_leaves",
    "count_active",
    "expand",
    "expand_leaves",
    "find_positions",
    "is_mostly_sparse",
    "keep_memory",
    "measured_break_even",
    "sparse_conv",
    "sparse_dot",
    "to_dense",
    "to_mask",
    "to_sparse",
]
