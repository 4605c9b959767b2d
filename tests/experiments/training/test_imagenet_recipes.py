"""The recipes of ImageNet: learning rates at their published steps, what is decayed, the loss."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.imagenet_recipes import GRANET, RIGL
from experiments.training.recipes import learning_rate, make_optimizer
from experiments.training.steps import cross_entropy

EPOCH = 10_009  # steps of GraNet's runs


def test_granet_climbs_five_stairs_and_falls_three_times():
    """lr (e + 1) / 6 in epoch e of the first five, then lr; a tenth at epochs 30, 60 and 90."""
    rate = learning_rate(GRANET, 100 * EPOCH)
    epochs = {0: 1 / 6, 1: 2 / 6, 4: 5 / 6, 5: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01, 90: 0.001}
    for epoch, share in epochs.items():
        for step in (epoch * EPOCH, (epoch + 1) * EPOCH - 1):
            assert float(rate(step)) == pytest.approx(0.1 * share, rel=1e-5), (epoch, step)


def test_rigl_rises_at_every_step_and_falls_at_30_70_and_90_epochs():
    rate, epoch = learning_rate(RIGL, 32_000), 1_281_167 / 4096
    warm = round(32_000 * RIGL.warmup)
    assert warm == pytest.approx(5 * epoch, rel=1e-3)
    assert float(rate(0)) == pytest.approx(1.6 / warm)
    assert float(rate(warm // 2 - 1)) == pytest.approx(1.6 * (warm // 2) / warm, rel=1e-5)
    for at, before, after in ((30, 1.6, 0.16), (70, 0.16, 0.016), (90, 0.016, 0.0016)):
        assert float(rate(int(at * epoch) - 20)) == pytest.approx(before, rel=1e-5)
        assert float(rate(int(at * epoch) + 20)) == pytest.approx(after, rel=1e-5)


def test_only_kernels_are_decayed():
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 2))}, "norm": {"scale": jnp.ones(2)}}
    tx = make_optimizer(GRANET, 100)
    zeros = {"conv": {"kernel": jnp.zeros((3, 3, 1, 2))}, "norm": {"scale": jnp.zeros(2)}}
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -1e-4 * 0.1 / 6, rtol=1e-5)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)


def test_smoothed_labels():
    """A tenth of a label is spread over all four classes: .925 and three times .025."""
    logits = jnp.array([[2.0, 0.0, -1.0, 1.0]])
    logs = np.log(np.exp(logits[0]) / np.exp(logits[0]).sum())
    expected = -(0.925 * logs[0] + 0.025 * (logs[1] + logs[2] + logs[3]))
    assert float(cross_entropy(logits, jnp.array([0]), 0.1)[0]) == pytest.approx(expected, rel=1e-5)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0]))
    np.testing.assert_array_equal(cross_entropy(logits, jnp.array([0]), 0.0), plain)
