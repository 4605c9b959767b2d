"""Scores: what a weight is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.scores import gradient, magnitude, random, saliency, score_leaves

W = jnp.array([[2.0, -3.0], [0.0, 0.5]])
G = jnp.array([[-1.0, 0.5], [4.0, -0.25]])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (magnitude, [[2.0, 3.0], [0.0, 0.5]]),
        (gradient, [[1.0, 0.5], [4.0, 0.25]]),
        (saliency, [[2.0, 1.5], [0.0, 0.125]]),  # |g w| of SNIP
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_formulas(score, expected, dtype):
    values = score(W.astype(dtype), G.astype(dtype), None)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, np.array(expected, dtype))


def test_random_is_reproducible_by_key(key):
    x = jnp.zeros(1000, jnp.bfloat16)
    first, again, other = (random(x, x, k) for k in (key, key, jax.random.fold_in(key, 1)))
    assert first.dtype == jnp.float32  # bfloat16 would tie: 256 values in [0.5, 1)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert ((first >= 0) & (first < 1)).all()


def test_random_needs_a_key():
    with pytest.raises(ValueError, match="a random score needs a key: call method.update"):
        random(W, G, None)


def test_leaves_of_one_shape_draw_different_numbers(key):
    leaves = {"a/kernel": W, "b/kernel": W}
    scores, _ = score_leaves(random, leaves, leaves, key)  # drawn once: the inputs are the scores
    assert (scores["a/kernel"] != scores["b/kernel"]).all()
    # A leaf's numbers depend on its own path, not on which other leaves there are.
    alone, _ = score_leaves(random, {"b/kernel": W}, {"b/kernel": W}, key)
    np.testing.assert_array_equal(alone["b/kernel"], scores["b/kernel"])


def test_score_of_wrong_shape():
    leaves = {"fc/kernel": W}
    with pytest.raises(ValueError, match=r"score of fc/kernel has shape \(2,\), the leaf \(2, 2\)"):
        score_leaves(lambda w, g, key: jnp.abs(w).sum(0), leaves, leaves, None)
