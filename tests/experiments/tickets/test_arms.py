"""What each arm changes about a ticket, and what it leaves alone."""

import jax
import pytest

import jaxsparse
from experiments import loop
from experiments.tickets import arms
from jaxsparse.nn import VGG, LeNet300100, cifar_resnet
from tests.checkpoint.states import bits
from tests.experiments.small_runs import make_run, split

pytestmark = pytest.mark.variants  # shapes and draws are the same on every Python


@pytest.fixture(scope="module")
def run():
    return make_run(method=jaxsparse.dense(total_steps=20))


def test_another_initialisation_is_that_of_no_seed_and_of_each_draw(run):
    first, again, second = (arms.reinitialised(run, draw) for draw in (0, 0, 1))
    assert bits(first) == bits(again)
    others = [loop.create_state(run._replace(seed=seed)).params for seed in range(1)]
    kernels = [p["Dense_0"]["kernel"] for p in (first.params, second.params, *others)]
    assert len({bytes(jax.device_get(x)) for x in kernels}) == 3
    assert bits(first.masks) == bits(loop.create_state(run).masks) and int(first.step) == 0


def test_shuffles_keep_counts_and_differ_by_draw_and_seed(run):
    masks = jaxsparse.magnitude_masks(loop.create_state(run).params, 0.7)
    found = [
        arms.shuffled(run._replace(seed=seed), masks, draw=d) for seed in (0, 1) for d in (0, 1)
    ]
    counts = lambda tree: [int(x.sum()) for x in jax.tree.leaves(tree)]
    assert all(counts(tree) == counts(masks) for tree in found)
    assert len({str(bits(tree)) for tree in [masks, *found]}) == 5


@pytest.mark.parametrize(
    ("model", "image"),
    [(LeNet300100(), (28, 28, 1)), (cifar_resnet(8), (32, 32, 3))],
)
def test_a_narrow_network_has_nearly_as_many_parameters(model, image, run):
    data = run.dataset._replace(train=split(0, 1, image))
    wide = run._replace(model=model, dataset=data)
    shapes = jax.eval_shape(lambda: loop.initial_variables(wide))["params"]
    total = sum(x.size for x in jax.tree.leaves(shapes))
    narrow, found = arms.narrow(wide, round(0.5 * total))
    assert found == pytest.approx(0.5 * total, rel=0.1)
    shapes = jax.eval_shape(lambda: loop.initial_variables(narrow))["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == found


def test_a_network_without_widths_has_no_narrow_one(run):
    with pytest.raises(ValueError, match="model 'VGG' has no widths to change"):
        arms.narrow(run._replace(model=VGG(16)), 10)
