"""Which scores the kernel takes as they are stored, and what memory an event then needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.selection.compiled import scores_of, stored

A, B = jnp.array([1.0, -2.0]), jnp.arange(3, dtype=jnp.bfloat16)


def test_arrays_and_absolute_values_in_the_order_of_the_scores():
    found = stored(lambda x: [jnp.abs(x["b"]), x["a"], jnp.abs(x["a"])], {"a": A, "b": B})
    assert found is not None and found.absolute == (True, False, True)
    for x, expected in zip(found.inputs, (B, A, A), strict=True):
        np.testing.assert_array_equal(x, expected)
    for x, expected in zip(
        scores_of(found.absolute, found.inputs), (B, A, jnp.abs(A)), strict=True
    ):
        np.testing.assert_array_equal(x, expected)


def test_scores_that_a_function_within_computes():
    absolute = jax.jit(lambda x: jnp.abs(jax.checkpoint(lambda y: y)(x)))
    found = stored(lambda x: [absolute(x)], A)
    assert found is not None and found.absolute == (True,)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: [x, 2.0 * x],
        lambda x: [jnp.abs(x * x)],
        lambda x: [jnp.abs(jnp.abs(x))],
        lambda x: [x.reshape(2, 1)],
        lambda x: [x.astype(jnp.float16)],
        lambda x: [jnp.ones(2)],
        lambda x: [jnp.float32(1.0)],
    ],
)
def test_what_has_to_be_computed(compute):
    assert stored(compute, A) is None


def test_float16_is_left_to_bisection():
    assert stored(lambda x: [x], A.astype(jnp.float16)) is None


@pytest.mark.parametrize("score", ["magnitude", "saliency"])
def test_an_event_stores_no_scores(score, key):
    """Beside the new masks, `kept` and the masks in between there is no room for them."""
    score = getattr(jaxsparse.scores, score)
    method = jaxsparse.gmp(sparsity=0.9, total_steps=20, update_interval=2, score=score)
    params = {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    masks = {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.bool_)}
    event = jax.jit(method.update).lower(params, params, masks, jnp.int32(4)).compile()
    memory = event.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes <= 3.1 * 512 * 512
