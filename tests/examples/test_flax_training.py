"""An ordinary Flax script becomes a sparse one by added lines, and both learn real images."""

import difflib
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsparse
from examples import dense_flax, sparse_flax

DENSE, SPARSE = (Path(m.__file__).read_text().splitlines() for m in (dense_flax, sparse_flax))
NUM_WEIGHTS = 144 + 4_608 + 18_432 + 31_360


def test_the_sparse_script_is_the_dense_one_and_at_most_12_lines():
    diff = list(difflib.unified_diff(DENSE, SPARSE, lineterm="", n=0))[2:]
    added = [line for line in diff if line.startswith("+")]
    assert [line for line in diff if line.startswith("-")] == []
    assert len(SPARSE) - len(DENSE) == len(added) <= 12


@pytest.mark.slow
def test_dense_flax(capsys):
    state, accuracy = dense_flax.main(steps=100)
    assert accuracy > 0.7  # chance is 0.1
    assert all(np.count_nonzero(w) == w.size for w in kernels(state.params))
    assert f"test accuracy {accuracy:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_sparse_flax(capsys):
    state, accuracy = sparse_flax.main(steps=100)
    assert accuracy > 0.7
    active = NUM_WEIGHTS - int(0.9 * NUM_WEIGHTS)
    assert jaxsparse.num_active(state.masks) == active
    assert f"{active:,}" in capsys.readouterr().out
    for params in (state.params, state.ema_params):
        assert 0.99 * active < sum(map(np.count_nonzero, kernels(params))) <= active
    jaxsparse.check(state.params, state.opt_state, state.masks)
    jaxsparse.check(state.ema_params, (), state.masks)


def kernels(params):
    return [np.asarray(w) for w in jax.tree.leaves(params) if w.ndim > 1]
