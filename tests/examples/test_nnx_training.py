"""The NNX example learns on real images and ends exactly at its sparsity."""

import jax
import pytest

from examples import nnx_training


@pytest.mark.slow
def test_nnx_training(capsys):
    with jax.numpy_rank_promotion("allow"):  # flax.nnx adds biases so
        accuracy, table = nnx_training.main(steps=200)
    assert accuracy > 0.6  # chance is 0.1
    assert table.num_active == 266_200 - int(0.95 * 266_200)
    assert [layer.path for layer in table.layers] == [
        "first/kernel",
        "head/kernel",
        "second/kernel",
    ]
    assert "first/kernel" in capsys.readouterr().out
