"""Runs a sparse network in Python without JAX: by ctypes, with the standard library and NumPy.

    python -m jaxsparse.engine --copy=.         # where jaxsparse is installed: the library
    python run_network_with_ctypes.py network.jse --library=./libjaxsparse_engine.so

`network.jse` is a file of `jaxsparse.sparse.save_engine`. The class `Network` is what to copy; the
rest prints the outputs for images of a .npy file, or for numbers made up, and the time of a call.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np


class Network:
    """A network from a file; call it with a float32 array of images for every input.

    Args:
      library: the path of the engine's library.
      path: the file.
      threads: 1 to 256.

    Raises:
      OSError: the library cannot be loaded.
      ValueError: the file cannot be read or is no network; says why.
    """

    def __init__(self, library: str, path: str, threads: int = 1) -> None:
        self._functions = _declared(ctypes.CDLL(library))
        self._engine = self._functions.jaxsparse_engine_open(path.encode(), threads)
        if not self._engine:
            raise ValueError(self._error())
        self.input_shapes, self.output_shapes = self._shapes("input"), self._shapes("output")

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Returns float32[batch, ...] for every output.

        Args:
          *inputs: [batch, ...], in the order and layout that the network had in JAX.

        Raises:
          ValueError: their shapes are not the network's.
        """
        arrays = [np.ascontiguousarray(x, np.float32) for x in inputs]
        batch = len(arrays[0]) if arrays else 1
        shapes, wanted = [x.shape for x in arrays], [(batch, *s) for s in self.input_shapes]
        if shapes != wanted:
            raise ValueError(f"inputs are {shapes}; they must be {wanted}")
        outputs = [np.empty((batch, *shape), np.float32) for shape in self.output_shapes]
        pointers = lambda many: (ctypes.c_void_p * len(many))(*(x.ctypes.data for x in many))
        if self._functions.jaxsparse_engine_run(
            self._engine, pointers(arrays), pointers(outputs), batch
        ):
            raise MemoryError(self._error())
        return outputs

    def close(self) -> None:
        """Frees the network; it cannot be called any more."""
        self._functions.jaxsparse_engine_close(self._engine)
        self._engine = None

    def _shapes(self, kind: str) -> list[tuple[int, ...]]:
        """The shapes of an image in the inputs or outputs."""
        number = getattr(self._functions, f"jaxsparse_engine_num_{kind}s")(self._engine)
        shape_of = getattr(self._functions, f"jaxsparse_engine_{kind}_shape")
        lengths, found = ctypes.POINTER(ctypes.c_int32)(), []
        for i in range(number):
            rank = shape_of(self._engine, i, ctypes.byref(lengths))
            found.append(tuple(lengths[axis] for axis in range(rank)))
        return found

    def _error(self) -> str:
        return self._functions.jaxsparse_engine_error().decode()


def _declared(library: Any) -> Any:
    """Returns the library with the types of its functions, as in jaxsparse_engine.h."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for name, result, *arguments in (
        ("open", pointer, ctypes.c_char_p, number),
        ("num_inputs", number, pointer),
        ("num_outputs", number, pointer),
        ("input_shape", number, pointer, number, pointer),
        ("output_shape", number, pointer, number, pointer),
        ("run", number, pointer, pointer, pointer, ctypes.c_int64),
        ("close", None, pointer),
        ("error", ctypes.c_char_p),
    ):
        function = getattr(library, f"jaxsparse_engine_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("network", help="a file of save_engine")
    parser.add_argument("--library", required=True, help="the engine's library")
    parser.add_argument("--input", help="a .npy file of images, [batch, ...]; else made up")
    parser.add_argument("--threads", type=int, default=1, help="1 to 256 (1)")
    parser.add_argument("--repeats", type=int, default=100, help="calls that are timed (100)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats={args.repeats} must be 1 or more")
    try:
        network = Network(args.library, args.network, args.threads)
        if args.input is not None:
            inputs = [np.atleast_1d(np.load(args.input))]
        else:
            made_up = lambda shape: np.arange(np.prod(shape, dtype=int)) % 17 / 8 - 1
            inputs = [made_up(shape).reshape(1, *shape) for shape in network.input_shapes]
        outputs, seconds = network(*inputs), []  # the first call makes the working memory
        for _ in range(args.repeats):
            start = time.perf_counter()
            outputs = network(*inputs)
            seconds.append(time.perf_counter() - start)
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {error}")
    for image in zip(*outputs, strict=True):
        print(*(f"{number:.9g}" for output in image for number in output.ravel()))
    median = 1e6 * statistics.median(seconds)
    batch = len(inputs[0]) if inputs else 1
    print(f"batch {batch}, threads {args.threads}: {median:.1f} us a call", file=sys.stderr)
    network.close()


if __name__ == "__main__":
    main()
