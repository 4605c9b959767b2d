"""--schedule=gsm: dense training in which Q weights see the gradient, and one prune at the end."""

import jax.numpy as jnp
import pytest

import jaxsparse
from experiments import fashion_mnist
from experiments.options import gsm
from experiments.options.schedules import make_method
from experiments.training.recipes import RECIPES, make_optimizer

CONFIG = fashion_mnist.Config(schedule="gsm", sparsity=0.75, steps=20)
PARAMS = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}


def test_it_prunes_once_after_the_last_step():
    method = make_method("gsm", sparsity=0.75, steps=20)
    assert [event.step for event in method.timetable.events] == [20]
    assert not method.skip_step
    event = method.update(PARAMS, PARAMS, jaxsparse.dense_masks(PARAMS), 20)
    assert event.masks["kernel"].tolist() == [[False] * 4, [False, False, True, True]]


def test_the_optimizer_sees_the_gradient_of_the_best_weights(capsys):
    recipe, method = (
        RECIPES["granet"]._replace(weight_decay=1e-6),
        make_method("gsm", sparsity=0.75, steps=20),
    )
    tx = gsm.with_gsm(make_optimizer(recipe, 20), CONFIG, method, recipe)
    updates, _ = tx.update({"kernel": jnp.ones((2, 4))}, tx.init(PARAMS), PARAMS)
    assert (abs(updates["kernel"]) > 1e-3).tolist() == [[False] * 4, [False, False, True, True]]
    said = capsys.readouterr().err
    assert said.startswith("warning: gsm: in 20 steps a passive weight shrinks to 1 of its size")
    other = fashion_mnist.Config(schedule="gmp")
    assert gsm.with_gsm(tx, other, method, recipe) is tx


def test_a_run_without_decay_is_refused():
    recipe = RECIPES["granet"]._replace(weight_decay=0.0)
    method = make_method("gsm", sparsity=0.75, steps=20)
    with pytest.raises(ValueError, match="weight_decay 0.0 must be in"):
        gsm.with_gsm(make_optimizer(recipe, 20), CONFIG, method, recipe)
