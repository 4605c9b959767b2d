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

    Raises:
      ValueError: parts of the network are left to XLA; says which.
    """
    if not engine.is_whole:
        raise ValueError(f"parts of the network need XLA, and a file cannot have them:\n{engine}")
    (data,) = engine.programs
    with written_whole(path) as beside:
        beside.write_bytes(data)
    return len(data)


class LoadedEngine:
    """A network from a file: a function of NumPy arrays.

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

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Returns float32[batch, numbers of an image] for every output.

        Args:
          *inputs: float32[batch, ...], in the layout that the network had in JAX.

        Raises:
          ValueError: their number or their sizes are wrong.
        """
        arrays, batch = self._checked(inputs)
        return self._handle.run(arrays, batch)

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
        sizes = self._handle.input_sizes
        if len(inputs) != len(sizes):
            raise ValueError(f"{len(inputs)} inputs, the network takes {len(sizes)}")
        batch = len(inputs[0]) if inputs else 1
        arrays = [np.ascontiguousarray(x, np.float32) for x in inputs]
        for array, size in zip(arrays, sizes, strict=True):
            if len(array) != batch or array.size != batch * size:
                raise ValueError(f"an input is {array.shape}; an image has {size} numbers")
        return arrays, batch

    @property
    def memory(self) -> int:
        """Bytes that the network takes in memory, so far."""
        return self._handle.memory


def load_engine(path: str | os.PathLike, threads: int | None = None) -> LoadedEngine:
    """Returns the network of a file; see `LoadedEngine`."""
    return LoadedEngine(path, threads)
