"""A run on several devices is the run on one: the same masks, and weights up to rounding."""

import functools

import jax
import numpy as np
import pytest

import jaxsparse
from experiments import imagenet, loop
from experiments.mesh import layout, start
from experiments.options import cli
from tests.experiments.tiny_imagenet import SHORT, TINY

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

FLAGS = f"{SHORT} --fake_data --steps=30 --schedule=rigl_itop --update_interval=21 --sparsity=0.8"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imagenet.MODELS, "tiny", TINY)
        yield


@functools.cache
def trained(num_devices, flags="", num_steps=20):
    """Losses, and the state, of so many steps and of the event after them."""
    config = cli.parse(imagenet.Config, [*FLAGS.split(), *flags.split()])
    mesh = layout.make_mesh(jax.devices()[:num_devices])
    run, data = imagenet.run_of(config, mesh)
    loop.check(run)
    state = start.created(run, mesh, fsdp=config.fsdp)
    first, batches = loop.peeked(data.train(0))
    take_step = imagenet.compiled(run, state, first)
    losses = []
    for step in range(1, num_steps + 1):
        state, loss = take_step(run.method.is_due(step), state, next(batches))
        losses.append(float(loss))
    return losses, run, state, take_step, next(batches)


VARIANTS = {
    "eight devices": (8, ""),
    "fully sharded": (8, "--fsdp"),
    "explicit": (8, "--exchange=explicit"),
    "explicit, fully sharded": (8, "--exchange=explicit --fsdp"),
    "micro-batches": (8, "--accumulate=2"),
}
LONG = ("explicit, fully sharded", "micro-batches")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.long) if x in LONG else x for x in VARIANTS]
)
def test_training_agrees_with_one_device(name):
    """Micro-batches have norms of their own, so that theirs is another run."""
    flags = "--accumulate=2" if "accumulate" in VARIANTS[name][1] else ""
    expected, *_, state = trained(1, flags)[:3]
    losses, _, found = trained(*VARIANTS[name])[:3]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    far = lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max())
    assert max(jax.tree.leaves(jax.tree.map(far, found.params, state.params))) < 1e-4


@pytest.mark.parametrize("name", ["eight devices", "fully sharded", "explicit"])
def test_a_leaf_stays_where_it_was_put(name):
    num_devices, flags = VARIANTS[name]
    *_, state = trained(num_devices, flags)[:3]
    kernel, mask = (tree["fc"]["kernel"] for tree in (state.params, state.masks))
    held = kernel.addressable_shards[0].data.size
    assert held == kernel.size // (8 if "fsdp" in flags else 1)
    assert mask.sharding.is_equivalent_to(kernel.sharding, 2)
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == 8
    state.check()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("grasp --score_per_class=1 --accumulate=2", marks=pytest.mark.long),
        "synflow --score_rounds=5 --exchange=explicit",
    ],
)
def test_scores_of_initial_weights_agree_with_one_device(flags):
    """And they go where params are; a sum of another order may turn a few close choices."""
    flags = f"{SHORT} --fake_data --steps=30 --sparsity=0.9 --schedule={flags}"
    config = cli.parse(imagenet.Config, flags.split())
    found = {}
    for num_devices, fsdp in ((1, False), (8, True)):
        mesh = layout.make_mesh(jax.devices()[:num_devices])
        run, _ = imagenet.run_of(config, mesh)
        run = run._replace(dataset=run.dataset._replace(num_classes=40))
        found[num_devices] = start.started(run, mesh, fsdp=fsdp)
    one, eight = (jax.tree.leaves(jax.device_get(state.masks)) for state in found.values())
    assert sum(x.sum() for x in one) == sum(x.sum() for x in eight)
    # Norms of the micro-batches of eight devices are those of the micro-batches of one.
    assert sum((x != y).sum() for x, y in zip(one, eight, strict=True)) <= 8
    kernel, mask = (tree["fc"]["kernel"] for tree in (found[8].params, found[8].masks))
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    assert mask.sharding.is_equivalent_to(kernel.sharding, 2)
    found[8].check()


def test_norms_of_each_device_are_another_run():
    flags = "--exchange=explicit --norms=device"
    alone, together = trained(8, flags, 3)[0], trained(8, "--exchange=explicit")[0][:3]
    assert np.isfinite(alone).all()
    assert alone[0] != together[0]


@pytest.mark.parametrize("flags", ["", "--fsdp"])
def test_the_event_of_one_state_is_the_same_on_all_devices(flags):
    """Bit for bit, from the state of one device laid out on eight."""
    _, run, one, *_ = trained(1)
    gradient = jax.tree.map(
        lambda x: np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), one.params
    )
    take = jax.jit(lambda state, grads: state.apply_gradients(grads=grads, event=True))
    mesh = layout.make_mesh()
    places = layout.shardings(mesh, one, fsdp=bool(flags))
    host = jax.device_get(one)
    eight = jax.tree.map(jax.device_put, host, places)
    found = take(eight, jax.tree.map(jax.device_put, gradient, places.params))
    expected = take(one, gradient)
    assert int(found.event_metrics.num_grown.sum()) > 0
    for name in ("masks", "params", "opt_state"):
        ours, theirs = (jaxsparse.fingerprint(getattr(x, name)) for x in (found, expected))
        assert int(ours) == int(theirs), name
    jaxsparse.check_replicas(found.masks)
