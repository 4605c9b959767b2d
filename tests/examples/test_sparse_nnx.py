"""The sparse NNX example learns on real images and keeps nothing of inactive weights."""

import jax
import pytest
from flax import nnx

import jaxsparse
from examples import sparse_nnx

NUM_WEIGHTS, NUM_BIASES = 144 + 4_608 + 15_680, 16 + 32 + 10


@pytest.mark.slow
def test_sparse_nnx(capsys):
    with jax.numpy_rank_promotion("allow"):  # flax.nnx adds biases so
        accuracy, model, masks = sparse_nnx.main(steps=200)
    assert accuracy > 0.7  # chance is 0.1
    active = NUM_WEIGHTS - int(0.9 * NUM_WEIGHTS)
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == active + NUM_BIASES
    assert jaxsparse.num_active(masks) == active
    assert f"{2 * (active + NUM_BIASES):,} floats" in capsys.readouterr().out
