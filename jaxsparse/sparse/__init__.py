"""Sparse execution: layers whose time and memory fall with the number of active weights."""

from jaxsparse.sparse.convolution import sparse_conv, sparse_dot
from jaxsparse.sparse.kernels import Backend, backend
from jaxsparse.sparse.positions import Positions, check_positions, to_dense, to_mask, to_sparse
from jaxsparse.sparse.window import Window

__all__ = [
    "Backend",
    "Positions",
    "Window",
    "backend",
    "check_positions",
    "sparse_conv",
    "sparse_dot",
    "to_dense",
    "to_mask",
    "to_sparse",
]
