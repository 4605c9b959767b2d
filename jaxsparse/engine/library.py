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
NOT_BUILT = (
    "the engine was not built; `python -m jaxsparse.kernels.build` makes it, with a C++ compiler"
)


class _Step(ctypes.Structure):
    """`jaxsparse_engine_step` of the header."""

    _fields_ = (
        ("kind", ctypes.c_char_p),
        ("function", ctypes.c_char_p),
        ("planes", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("weights", ctypes.c_int64),
        ("multiply_adds", ctypes.c_int64),
    )


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
        closing = weakref.finalize(self, functions.jaxsparse_engine_close, self._pointer)
        closing.atexit = False  # a thread that outlives Python's end may be in a call
        self._run = functions.jaxsparse_engine_run
        self.input_shapes = self._shapes("input")
        self.output_shapes = self._shapes("output")

    def _shapes(self, kind: str) -> list[tuple[int, ...]]:
        """The shapes of an image in the inputs or outputs."""
        functions = library()
        number = getattr(functions, f"jaxsparse_engine_num_{kind}s")(self._pointer)
        shape_of = getattr(functions, f"jaxsparse_engine_{kind}_shape")
        lengths, found = ctypes.POINTER(ctypes.c_int32)(), []
        for i in range(number):
            rank = shape_of(self._pointer, i, ctypes.byref(lengths))
            found.append(tuple(lengths[axis] for axis in range(rank)))
        return found

    def run(self, inputs: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
        """Runs a batch.

        Args:
          inputs: float32, contiguous, of `batch` images each.
          batch: images.

        Returns:
          float32[batch, ...] for every output.
        """
        outputs = [np.empty((batch, *shape), np.float32) for shape in self.output_shapes]
        if self._run(self._pointer, _pointers(inputs), _pointers(outputs), batch):
            raise MemoryError(_error(library()))
        return outputs

    def tune(self, inputs: Sequence[np.ndarray], batch: int) -> None:
        """Keeps what is fastest for a batch of this size; takes what `run` does."""
        outputs = [np.empty((batch, *shape), np.float32) for shape in self.output_shapes]
        functions = library()
        if functions.jaxsparse_engine_tune(
            self._pointer, _pointers(inputs), _pointers(outputs), batch
        ):
            raise MemoryError(_error(functions))

    def steps(self) -> list[tuple[Any, ...]]:
        """Returns the fields of `ProfileStep`, but for the time, of all steps."""
        functions, found = library(), []
        for number in range(functions.jaxsparse_engine_num_steps(self._pointer)):
            step = _Step()
            functions.jaxsparse_engine_describe(self._pointer, number, ctypes.byref(step))
            values = [getattr(step, field[0]) for field in _Step._fields_]
            found.append(tuple(x.decode() if isinstance(x, bytes) else x for x in values))
        return found

    def profile(
        self, inputs: Sequence[np.ndarray], batch: int, repeats: int
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Runs a batch several times on one thread.

        Args:
          inputs: as of `run`.
          batch: images.
          repeats: 1 or more.

        Returns:
          The outputs, and float64[steps] seconds of each step, as medians.
        """
        functions = library()
        outputs = [np.empty((batch, *shape), np.float32) for shape in self.output_shapes]
        seconds = np.empty(functions.jaxsparse_engine_num_steps(self._pointer))
        if functions.jaxsparse_engine_profile(
            self._pointer,
            _pointers(inputs),
            _pointers(outputs),
            batch,
            repeats,
            *_pointers([seconds]),
        ):
            raise MemoryError(_error(functions))
        return outputs, seconds

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
        raise RuntimeError(NOT_BUILT)
    pointer, whole, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for name, result, *arguments in (
        ("open_bytes", pointer, ctypes.c_char_p, ctypes.c_uint64, whole),
        ("num_inputs", whole, pointer),
        ("num_outputs", whole, pointer),
        ("input_size", long, pointer, whole),
        ("output_size", long, pointer, whole),
        ("input_shape", whole, pointer, whole, pointer),
        ("output_shape", whole, pointer, whole, pointer),
        ("run", whole, pointer, pointer, pointer, long),
        ("tune", whole, pointer, pointer, pointer, long),
        ("num_steps", whole, pointer),
        ("describe", whole, pointer, whole, pointer),
        ("profile", whole, pointer, pointer, pointer, long, whole, pointer),
        ("memory", ctypes.c_uint64, pointer),
        ("close", None, pointer),
        ("error", ctypes.c_char_p),
    ):
        function = getattr(functions, f"jaxsparse_engine_{name}")
        function.restype, function.argtypes = result, arguments
    return functions


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*map(_address, arrays))


def _address(array: Any) -> int:
    try:  # takes a third of the time of the other way, and of `array.ctypes.data`
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # read-only, or empty
        return array.__array_interface__["data"][0]


def _error(functions: Any) -> str:
    return functions.jaxsparse_engine_error().decode()
