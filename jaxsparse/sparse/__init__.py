"""Sparse execution: layers whose time and memory fall with the number of active weights."""

from jaxsparse.sparse.choice import (
    BreakEven,
    LayerShape,
    break_even,
    choose_rooms,
    is_mostly_sparse,
)
from jaxsparse.sparse.convolution import Layout, sparse_conv, sparse_dot
from jaxsparse.sparse.kernels import Backend, backend
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
    "Layout",
    "Positions",
    "Window",
    "backend",
    "batch_norm",
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
    "sparse_conv",
    "sparse_dot",
    "to_dense",
    "to_mask",
    "to_sparse",
]
