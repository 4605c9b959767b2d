"""The NNX example learns on real images and ends exactly at its sparsity."""

from pathlib import Path

import jax
import pytest

from examples import nnx_training


def test_it_has_six_lines_that_dense_training_has_not_or_has_otherwise():
    lines = Path(nnx_training.__file__).read_text().splitlines()
    assert sum("# sparse" in line for line in lines) == 6


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
