"""Networks in files, which the engine's library runs with and without Python."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxsparse.checks import check_whole
from jaxsparse.engine.inference import CompiledInference, default_threads
from jaxsparse.engine.library import MOST_THREADS, Handle
from jaxsparse.engine.profile import MOST_REPEATS, Profile, profile_handle
from jaxsparse.whole_files import written_whole


def save_engine(path: str | os.PathLike, engine: CompiledInference) -> int:
    """Writes a network to a file that the engine's library runs, and returns its size in bytes.

    The file needs neither Python nor JAX (csrc/engine/jaxsparse_engine.h), and is written whole or
    not at all.

    Its inputs and outputs are arrays of float32, in the shapes of those of the function and in the
    order of `jax.tree.leaves`.

    Raises:
      TypeError: `engine` is not of `compile_inference`.
      ValueError: parts of the network are left to XLA; says which.
      OSError: the file cannot be written.
    """
    if not isinstance(engine, CompiledInference):
        raise TypeError(f"engine is a {type(engine).__name__}, not of compile_inference")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {Path(path).parent}")
    if not engine.is_whole:
        raise ValueError(f"parts of the network need XLA, and a file cannot have them:\n{engine}")
    (data,) = engine.programs
    with written_whole(path) as beside:
        beside.write_bytes(data)
    return len(data)


class LoadedEngine:
    """A network from a file: a function of NumPy arrays, not of those that JAX traces.

    Attributes:
      input_shapes, output_shapes: of an image in each array.

    Args:
      path: of `save_engine`.
      threads: 1 to 256; default one a core.

    Raises:
      ValueError: the file is damaged, or no network.
      OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None) -> None:
        data = Path(path).read_bytes()
        threads = default_threads() if threads is None else threads
        threads = check_whole("threads", threads, 1, MOST_THREADS)
        try:
            self._handle = Handle(data, threads)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self.threads = threads
        self.input_shapes, self.output_shapes = (
            self._handle.input_shapes,
            self._handle.output_shapes,
        )

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Returns float32[batch, ...] for every output.

        Args:
          *inputs: numbers[batch, ...], in the order and layout that the network had in JAX; they
            become float32.

        Raises:
          ValueError: their number, shapes or dtypes are wrong.
        """
        arrays, batch = self._checked(inputs)
        return self._handle.run(arrays, batch)

    def tune(self, *inputs: np.ndarray) -> None:
        """Measures how a batch of this size goes through the engine fastest on this machine.

        A model of the costs decides otherwise: how many images go side by side from which step on,
        and which steps several threads share. Outputs may differ in their last digits from those
        before. It takes some hundred calls, or a few seconds.

        Args:
          *inputs: numbers[batch, ...], as for a call.

        Raises:
          ValueError: their number, shapes or dtypes are wrong.
        """
        self._handle.tune(*self._checked(inputs))

    def profile(self, *inputs: np.ndarray, repeats: int = 20) -> Profile:
        """Measures where the time goes: the steps of a call on one thread, in order.

        Args:
          *inputs: float32[batch, ...].
          repeats: 1 or more; times are medians.

        Raises:
          ValueError: the inputs' number or sizes are wrong, or repeats are out of range.
        """
        repeats = check_whole("repeats", repeats, 1, MOST_REPEATS)
        arrays, batch = self._checked(inputs)
        _, steps = profile_handle(self._handle, arrays, batch, repeats)
        return Profile(batch, tuple(steps))

    def _checked(self, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
        shapes = self.input_shapes
        if len(inputs) != len(shapes):
            raise ValueError(f"{len(inputs)} inputs, the network takes {len(shapes)}")
        arrays = [np.asarray(x) for x in inputs]
        batch = len(arrays[0]) if arrays and arrays[0].ndim else 0
        for number, (x, shape) in enumerate(zip(arrays, shapes, strict=True)):
            if x.shape != (batch, *shape):
                wanted = ", ".join(map(str, ("images" if number == 0 else batch, *shape)))
                raise ValueError(f"input {number} has shape {x.shape}; it must be ({wanted})")
            if x.dtype.kind not in "fiub" and x.dtype.name != "bfloat16":
                raise ValueError(f"input {number} has dtype {x.dtype}; it must be of real numbers")
        return [np.ascontiguousarray(x, np.float32) for x in arrays], batch

    def __repr__(self) -> str:
        """Shapes and threads."""
        shapes = lambda of: ", ".join(str(("images", *x)).replace("'", "") for x in of)
        return (
            f"<LoadedEngine: {shapes(self.input_shapes)} -> {shapes(self.output_shapes)}; "
            f"threads: {self.threads}>"
        )

    @property
    def memory(self) -> int:
        """Bytes that the network takes in memory, so far."""
        return self._handle.memory


def load_engine(path: str | os.PathLike, threads: int | None = None) -> LoadedEngine:
    """Returns the network of a file, as a function of NumPy arrays; see `LoadedEngine`.

    Args:
      path: of `save_engine`.
      threads: 1 to 256; default one a core.

    Raises:
      ValueError: the file is damaged, or no network; or threads are out of range.
      OSError: it cannot be read.
    """
    return LoadedEngine(path, threads)
