"""The order of the images, and steps that are fed in other ways than by images on the device."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import loop
from experiments.training.batches import Indexed, Loaded, shuffled
from experiments.training.execution import make_execution
from tests.checkpoint.states import bits
from tests.experiments.small_runs import Net, make_run, split, trained

pytestmark = pytest.mark.variants  # long, and one Python shows it for both


def test_batches_visit_every_image_once_an_epoch():
    drawn = shuffled(jax.random.key(0), 10, 3)
    epochs = [np.concatenate([next(drawn) for _ in range(3)]) for _ in range(2)]
    assert [len(set(epoch.tolist())) for epoch in epochs] == [9, 9]
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7])
def test_batches_after_a_step_are_those_of_the_straight_run(start):
    straight = shuffled(jax.random.key(0), 10, 3)
    wanted = [next(straight).tolist() for _ in range(12)][start:]
    drawn = shuffled(jax.random.key(0), 10, 3, start=start)
    assert [next(drawn).tolist() for _ in wanted] == wanted


def test_parts_are_the_batch_in_equal_pieces():
    images, labels = split(0, 6)
    indices = np.array([5, 1, 4, 0, 3, 2], np.int32)
    indexed = Indexed(jnp.asarray(images), jnp.asarray(labels), indices)
    loaded = Loaded(images[indices], labels[indices])
    for batch in (indexed, loaded):
        parts = [batch.part(number, 3).take() for number in range(3)]
        chex.assert_trees_all_equal(parts[1], (images[[4, 0]], labels[[4, 0]]))
        whole = [jnp.concatenate(each) for each in zip(*parts, strict=True)]
        chex.assert_trees_all_equal(tuple(whole), batch.take())


def loaded(run):
    """The batches of a run, gathered on the host: from completed steps to an iterator."""
    images, labels = run.dataset.train

    def batches(first):
        key = jax.random.key(run.seed)
        for indices in shuffled(key, len(labels), run.batch_size, start=first):
            yield Loaded(images[indices], labels[indices])

    return batches


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_iterator_of_arrays_trains_as_images_on_the_device_do(accumulate, tmp_path):
    run = make_run(model=Net(norm=True, dropout_rate=0.25), accumulate=accumulate)
    losses, execution, live = trained(run)
    fed = run._replace(source=loaded(run))
    found, other, other_live = trained(fed)
    np.testing.assert_allclose(found, losses, rtol=1e-5)  # two programs, which round differently
    ours, theirs = other.full(other_live), execution.full(live)
    assert bits(ours.masks) == bits(theirs.masks)
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-4, atol=1e-6)


def test_batches_sharded_over_devices():
    """Eight devices, two images each; the state is whole on every device."""
    run = make_run(batch_size=16, tx=optax.sgd(0.1, momentum=0.9), model=Net(norm=True))
    expected, execution, live = trained(run)
    reference = execution.full(live)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    everywhere, by_image = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batches = (jax.device_put(batch, by_image) for batch in loaded(run)(0))
    first = next(batches)
    assert len(first.images.addressable_shards) == 8 and first.images.shape == (16, 8, 8, 1)

    state = jax.device_put(loop.create_state(run), everywhere)
    execution = make_execution(run, state, first)
    losses = []
    for step, batch in enumerate(itertools.chain([first], batches), start=1):
        state, loss = execution.step(state, run.method.is_due(step), batch)
        losses.append(float(loss))
        if step == run.steps:
            break
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    chex.assert_trees_all_equal(state.masks, reference.masks)
    chex.assert_trees_all_close(state.params, reference.params, rtol=1e-3, atol=1e-4)
