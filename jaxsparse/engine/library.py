"""The engine's shared library, by ctypes: opens networks and runs them on NumPy arrays."""

import ctypes
import functools
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsparse.kernels.build import engine_library

MOST_THREADS = 256


class Handle:
    """A network that the library has opened; it is closed with the object.

    Args:
      data: of `to_bytes`, or of a file.
      threads: 1 to 256.

    Raises:
      ValueError: the bytes are no network, or threads are out of range.
      RuntimeError: the library was not built.
    """

    def __init__(self, data: bytes, threads: int) -> None:
        functions = library()
        self._pointer = functions.jaxsparse_engine_open_bytes(data, len(data), threads)
        if not self._pointer:
            raise ValueError(_error(functions))
        weakref.finalize(self, functions.jaxsparse_engine_close, self._pointer)
        self._run = functions.jaxsparse_engine_run
        sizes = lambda num, size: [size(self._pointer, i) for i in range(num(self._pointer))]
        self.input_sizes = sizes(
            functions.jaxsparse_engine_num_inputs, functions.jaxsparse_engine_input_size
        )
        self.output_sizes = sizes(
            functions.jaxsparse_engine_num_outputs, functions.jaxsparse_engine_output_size
        )

    def run(self, inputs: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
        """Runs a batch.

        Args:
          inputs: float32, contiguous, of `batch` times the input's size.
          batch: images.

        Returns:
          float32[batch, size] for every output.
        """
        outputs = [np.empty((batch, size), np.float32) for size in self.output_sizes]
        if self._run(self._pointer, _pointers(inputs), _pointers(outputs), batch):
            raise MemoryError(_error(library()))
        return outputs

    @property
    def memory(self) -> int:
        """Bytes that the network takes in memory, so far."""
        return library().jaxsparse_engine_memory(self._pointer)


@functools.cache
def library() -> Any:
    """Returns the library's functions.

    Raises:
      RuntimeError: it was not built, or cannot be loaded.
    """
    path = engine_library()
    try:
        functions = ctypes.CDLL(os.fspath(path)) if path is not None else None
    except OSError as error:
        raise RuntimeError(f"the engine cannot be loaded: {error}") from None
    if functions is None:
        raise RuntimeError(
            "the engine was not built; `python -m jaxsparse.kernels.build` makes it, with a C++ "
            "compiler"
        )
    pointer, whole, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for name, result, *arguments in (
        ("open_bytes", pointer, ctypes.c_char_p, ctypes.c_uint64, whole),
        ("num_inputs", whole, pointer),
        ("num_outputs", whole, pointer),
        ("input_size", long, pointer, whole),
        ("output_size", long, pointer, whole),
        ("run", whole, pointer, pointer, pointer, long),
        ("memory", ctypes.c_uint64, pointer),
        ("close", None, pointer),
        ("error", ctypes.c_char_p),
    ):
        function = getattr(functions, f"jaxsparse_engine_{name}")
        function.restype, function.argtypes = result, arguments
    return functions


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    # Faster than `array.ctypes.data`, which makes an object.
    addresses = [array.__array_interface__["data"][0] for array in arrays]
    return (ctypes.c_void_p * len(arrays))(*addresses)


def _error(functions: Any) -> str:
    return functions.jaxsparse_engine_error().decode()
