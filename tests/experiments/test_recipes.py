"""The papers' learning rates at their own lengths, and one step of the optimizer by hand."""

import jax.numpy as jnp
import pytest

from experiments.recipes import RECIPES, Recipe, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        # 160 epochs of 352 steps: after epochs 80 and 120
        ("granet", 56_320, {28_159: 0.1, 28_160: 0.01, 42_239: 0.01, 42_240: 0.001}),
        (
            "rigl",
            97_656,
            {29_999: 0.1, 30_000: 0.02, 59_999: 0.02, 60_000: 0.004, 89_999: 0.004, 90_000: 8e-4},
        ),
        ("granet", 3_510, {1_754: 0.1, 1_755: 0.01, 2_631: 0.01, 2_632: 0.001}),  # 10 of ours
        ("granet", 2, {0: 0.1, 1: 0.01}),
        ("rigl", 2, {0: 0.1, 1: 0.004}),
    ],
)
def test_the_rate_falls_where_the_paper_says(name, steps, expected):
    rate = learning_rate(RECIPES[name], steps)
    assert {step: float(rate(step)) for step in expected} == pytest.approx(expected)
    assert float(rate(0)) == pytest.approx(0.1)


def test_drops_that_coincide_count_both():
    rate = learning_rate(Recipe(1, 1, 1.0, ((0.5, 0.1), (0.75, 0.5))), 3)
    assert [float(rate(step)) for step in (0, 1, 2)] == pytest.approx([1.0, 1.0, 0.05])


def test_one_step_by_hand():
    """Decay is L2 in the gradient, of biases too: g = 2 + 0.5 p, moved by 0.1 (1 + 0.9) g."""
    tx = make_optimizer(Recipe(1, 1, 0.1, (), weight_decay=0.5), 10)
    params = {"kernel": jnp.ones(()), "bias": -jnp.ones(())}
    updates, _ = tx.update(
        {"kernel": jnp.array(2.0), "bias": jnp.array(2.0)}, tx.init(params), params
    )
    assert float(updates["kernel"]) == pytest.approx(-0.1 * 1.9 * 2.5)
    assert float(updates["bias"]) == pytest.approx(-0.1 * 1.9 * 1.5)


@pytest.mark.parametrize("flag", ["learning_rate", "momentum", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_numbers_out_of_range_name_their_flag(flag, value):
    with pytest.raises(ValueError, match=f"--{flag} {value} must be a finite number of at least 0"):
        make_optimizer(RECIPES["granet"]._replace(**{flag: value}), 10)


def test_what_is_held_out():
    assert RECIPES["granet"].held_out == {"cifar10": 0.1}
    assert RECIPES["rigl"].held_out == {}
