"""The Equinox example learns on real images and ends exactly at its sparsity."""

import pytest

from examples import equinox_training


@pytest.mark.slow
def test_equinox_training(capsys):
    accuracy, table = equinox_training.main(steps=200)
    assert accuracy > 0.6  # chance is 0.1
    assert table.num_active == 266_200 - int(0.95 * 266_200)
    assert [layer.path for layer in table.layers] == [f"layers/{i}/weight" for i in range(3)]
    assert "layers/0/weight" in capsys.readouterr().out
