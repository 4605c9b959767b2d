"""Random networks of all operations compute what JAX computes, for any batch."""

import jax
import numpy as np
import pytest

from jaxsparse.engine.inference import compile_inference
from jaxsparse.kernels.load import backend
from tests.engine.agreement import RELATIVE, difference, numbers
from tests.engine.drawn import SHAPE, drawn

BATCHES = (40, 1, 3, 16, 17)


def assert_right(seed: int) -> None:
    network, x = drawn(seed), numbers(max(BATCHES), *SHAPE, seed=seed)
    engine = compile_inference(lambda _, x: network(x), {}, None, x[:1], threads=1 + seed % 3)
    if engine.reasons and backend().name != "compiled":
        return  # XLA has a part of this one
    want = jax.jit(drawn(seed, crops=True))(x)
    for batch in BATCHES:
        for name, got in engine(x[:batch]).items():
            assert difference(got, want[name][:batch]) < RELATIVE, (seed, batch, name)


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_drawn(first):
    for seed in range(first, first + 10):
        assert_right(seed)


@pytest.mark.parametrize("seed", [888])
def test_once_wrong(seed):
    """An output was an input."""
    assert_right(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_many(first):
    for seed in range(first, first + 100):
        assert_right(seed)


def test_most_drawn_networks_are_whole():
    """So the tests above are of the engine and not of XLA."""
    x = np.zeros((1, *SHAPE), np.float32)
    engines = [compile_inference(lambda _, x, s=s: drawn(s)(x), {}, None, x) for s in range(20)]
    assert sum(not engine.reasons for engine in engines) >= 18
