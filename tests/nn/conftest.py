"""The fixture `engine` of the sparse kernels."""

from tests.sparse.conftest import engine

__all__ = ["engine"]
