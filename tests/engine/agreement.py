"""Whether the engine computes what JAX computes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.engine.inference import CompiledInference, compile_inference

BATCHES = (17, 1, 3)
RELATIVE = 1e-5


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns float32 from a normal distribution."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def difference(got: Any, want: Any) -> float:
    """Returns the largest difference, divided by the largest number that is wanted."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    if not want.size:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-3))


def compiled(
    function: Callable[..., Any], *inputs: np.ndarray, **options: Any
) -> CompiledInference:
    """Returns a function of arrays, compiled as one of their tuple."""
    apply = lambda variables, arrays: function(*arrays)
    return compile_inference(apply, {}, None, tuple(x[:1] for x in inputs), **options)


def assert_agree(
    functions: Mapping[str, Callable[..., Any]],
    *inputs: np.ndarray,
    batches: Sequence[int] = BATCHES,
    **options: Any,
) -> None:
    """Asserts that the engine runs all functions, as one network, and that their results are right.

    Args:
      functions: by name, of the same arrays.
      *inputs: at least as many images as in the largest batch.
      batches: numbers of images to try.
      **options: of `compile_inference`.
    """
    all_of_them = lambda *arrays: {name: f(*arrays) for name, f in functions.items()}
    engine = compiled(all_of_them, *inputs, **options)
    assert not engine.reasons, str(engine)
    assert len(engine.programs) == 1
    want = jax.jit(all_of_them)(*inputs)
    for batch in batches:
        got = engine(tuple(x[:batch] for x in inputs))
        errors = {name: difference(got[name], x[:batch]) for name, x in want.items()}
        assert {name: e for name, e in errors.items() if not e <= RELATIVE} == {}, batch
