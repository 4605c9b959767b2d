"""The papers' learning rates at their own lengths, and one step of the optimizer by hand."""

import math

import jax.numpy as jnp
import pytest

from experiments.training.recipes import RECIPES, Recipe, learning_rate, make_optimizer


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
        # 250 epochs of 352 steps: after epoch 125, and half an epoch after the 187th.
        ("east", 88_000, {43_999: 0.1, 44_000: 0.01, 65_999: 0.01, 66_000: 0.001}),
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
    with pytest.raises(ValueError, match=rf"--{flag}={value} must be in \[0, inf\)"):
        make_optimizer(RECIPES["granet"]._replace(**{flag: value}), 10)


@pytest.mark.parametrize(
    ("name", "epochs", "held_out", "weight_decay", "max_norm"),
    [
        ("granet", 160, {"cifar10": 0.1}, 5e-4, math.inf),
        ("rigl", 250, {}, 5e-4, math.inf),
        ("east", 250, {"cifar10": 0.1, "cifar100": 0.1}, 1e-4, 1.0),
    ],
)
def test_the_published_numbers(name, epochs, held_out, weight_decay, max_norm):
    recipe = RECIPES[name]
    assert (recipe.epochs, recipe.held_out) == (epochs, held_out)
    assert (recipe.weight_decay, recipe.max_norm) == (weight_decay, max_norm)
    common = (recipe.batch_size, recipe.learning_rate, recipe.momentum, recipe.nesterov)
    assert common == (128, 0.1, 0.9, True)


def test_a_long_gradient_is_cut_before_the_decay_is_added():
    """Of (3, 4), to length 1: g = (0.6, 0.8) + 0.5 p."""
    tx = make_optimizer(Recipe(1, 1, 0.1, (), weight_decay=0.5, max_norm=1.0), 10)
    params, grads = jnp.ones(2), jnp.array([3.0, 4.0])
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates.tolist() == pytest.approx([-0.1 * 1.9 * 1.1, -0.1 * 1.9 * 1.3])
