"""Networks that the engine shares with XLA: parts of each, arrays between them, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.engine.inference import compile_inference
from tests.engine.agreement import difference, numbers
from tests.engine.shuffled import shuffled

pytestmark = pytest.mark.usefixtures("compiled")


def assert_right(seed: int) -> bool:
    """Asserts that an engine computes what JAX does, and returns whether it is whole."""
    network, shape = shuffled(seed)
    x = numbers(17, *shape, seed=seed)
    engine = compile_inference(lambda _, x: network(x), {}, None, x[:3], threads=1 + seed % 2)
    for batch in (3, 1, 17) if engine.is_whole else (3,):
        want = network(jnp.asarray(x[:batch]))
        for a, b in zip(engine(x[:batch]), want, strict=True):
            assert difference(a, b) < 1e-4, (seed, batch)
    return engine.is_whole


def test_shuffled():
    whole = [assert_right(seed) for seed in range(16)]
    assert 0 < sum(whole) < len(whole)


@pytest.mark.parametrize("seed", [7, 97, 243])
def test_once_wrong(seed):
    """A value of a second part was read from the first."""
    assert_right(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 1600, 100))
def test_many(first):
    for seed in range(first, first + 100):
        assert_right(seed)


W = numbers(6, 6, seed=1)


@pytest.mark.parametrize(
    "network",
    [
        lambda x: (jnp.sort(x @ W) @ W).T,
        lambda x: jnp.tensordot(W, jnp.sort(x @ W) @ W, ((1,), (1,))),
        lambda x: jax.lax.scan(lambda c, row: (c, row + 1), 0, (jnp.sort(x @ W) @ W).T)[1],
    ],
)
def test_images_along_another_axis_behind_a_part(network):
    x = numbers(5, 6)
    engine = compile_inference(lambda _, x: network(x), {}, None, x)
    assert difference(engine(x), network(x)) < 1e-5


def test_numpy_arrays_for_numpy_arrays():
    engine = compile_inference(lambda _, x: (jnp.sort(x @ W), x @ W), {}, None, numbers(2, 6))
    assert not engine.is_whole
    assert {type(x) for x in engine(numbers(3, 6))} == {np.ndarray}
    assert all(isinstance(x, jax.Array) for x in engine(jnp.ones((3, 6))))


def test_a_program_is_kept_once():
    """Whatever the numbers of images, which have a plan each."""
    engine = compile_inference(lambda _, x: jnp.sort(x @ W) @ W[:, :2], {}, None, numbers(2, 6))
    for batch in (1, 2, 3, 4):
        engine(numbers(batch, 6))
    plans = list(engine._plans.made.values())
    assert len(plans) == 4
    assert len({id(program) for plan in plans for program in plan.programs}) == 2
    assert len(engine._arrays) == 2


def test_many_parts():
    """More than were once kept open."""

    def network(_, x):
        for _ in range(40):
            x = jnp.sort(jnp.tanh(x @ W)) - 0.1
        return x

    x = numbers(3, 6)
    engine = compile_inference(network, {}, None, x, threads=2)
    assert len(engine.programs) == 40
    for _ in range(2):
        assert difference(engine(x), network({}, x)) < 1e-4


def test_a_constant_behind_a_barrier():
    network = lambda _, x: jax.lax.optimization_barrier((x @ W, jnp.ones(3)))[0]
    x = numbers(3, 6)
    assert difference(compile_inference(network, {}, None, x)(x), x @ W) < 1e-5


def test_no_gradient():
    engine = compile_inference(lambda _, x: x @ W, {}, None, numbers(2, 6))
    with pytest.raises(ValueError, match="has no gradient; differentiate the model"):
        jax.grad(lambda x: engine(x).sum())(jnp.ones((2, 6)))
