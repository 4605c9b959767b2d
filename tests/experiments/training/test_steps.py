"""One step, held against the network applied by hand, and micro-batches against the whole batch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments import fashion_mnist, loop
from experiments.data.augment import crop_and_flip
from experiments.data.dataset import Split
from experiments.records import report
from experiments.records.run_folder import read_metrics
from experiments.training.batches import FIRST_EPOCH, Indexed
from experiments.training.run import AUGMENTATION, DROPOUT, MASKS, WEIGHTS
from experiments.training.steps import compile_steps, kinds, loss_and_grads
from tests.experiments.small_runs import Net, make_run, split

BATCH = np.array([5, 1, 40, 7, 0, 3, 9, 30, 2, 11, 8, 47], np.int32)
AUGMENT = functools.partial(crop_and_flip, mode="reflect", pad=2)


def batch_of(run, indices=BATCH):
    return Indexed(*map(jnp.asarray, run.dataset.train), jnp.asarray(indices))


def after(run, *batches):
    """The state after steps without a mask update, and the loss of the last."""
    state = loop.create_state(run)
    step = compile_steps(run, state, batch_of(run), kinds(run))[False]
    loss = None
    for indices in batches:
        state, loss = step(state, batch_of(run, indices))
    return state, float(loss)


def moved(stats, x):
    """Running mean and variance of BatchNorm with momentum 0.9, moved by a batch."""
    mean, var = stats
    return 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)


def hidden(params, images):
    """What the first layer makes of uint8 images."""
    flat = (images.astype(np.float32) / 255 - 0.5).reshape(len(images), -1)
    return flat @ np.asarray(params["Dense_0"]["kernel"]) + np.asarray(params["Dense_0"]["bias"])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_running_statistics_take_in_one_micro_batch_after_the_other(accumulate):
    run = make_run(model=Net(norm=True), accumulate=accumulate)
    x = hidden(loop.create_state(run).params, run.dataset.train.images[BATCH])
    stats = np.zeros(6), np.ones(6)
    for part in x.reshape(accumulate, -1, 6):
        stats = moved(stats, part)
    found = after(run, BATCH)[0].collections["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], stats[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], stats[1], rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
    run = make_run(model=Net(norm=True, dropout_rate=0.5))
    order = np.tile(np.arange(48, dtype=np.int32), (30, 1))
    batches = np.random.default_rng(0).permuted(order, axis=1)
    variables = jax.device_get(after(run, *batches[:, :12])[0].variables)
    params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    images = split(3, 40).images
    x = (hidden(params, images) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    x = np.maximum(x * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"], 0)
    predicted = np.argmax(x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], -1)
    assert len(set(predicted.tolist())) > 1
    for batch_size in (1000, 7):
        everything = Split(images, predicted.astype(np.int32))
        assert report.evaluate(run, variables, everything, batch_size) == 1.0
    assert report.evaluate(run, variables, Split(images[:0], predicted[:0])) is None


def test_evaluation_does_not_take_nan_for_the_first_class():
    run = make_run()
    params = loop.create_state(run).params
    params["Dense_1"]["bias"] = params["Dense_1"]["bias"].at[2].set(jnp.nan)
    with pytest.raises(ValueError, match="the network gives NaN for 8 of 8 images, though"):
        report.evaluate(run, {"params": params}, run.dataset.test)


@pytest.mark.parametrize(
    "fields", [{"model": Net(dropout_rate=0.5)}, {"augment": AUGMENT}], ids=["dropout", "augment"]
)
def test_chance_follows_from_seed_step_and_part(fields):
    run = make_run(**fields)
    state = loop.create_state(run)

    def loss(seed=0, step=3, part=0):
        asked = run._replace(seed=seed)
        batch = batch_of(run)
        return float(loss_and_grads(asked, state.params, {}, jnp.int32(step), batch, part)[0])

    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(step=4), loss(part=1)}) == 4


def test_every_purpose_has_a_key_of_its_own():
    run = make_run()
    keys = [run.key(p) for p in (WEIGHTS, MASKS, FIRST_EPOCH, AUGMENTATION, DROPOUT)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 5


@pytest.mark.parametrize("accumulate", [2, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(accumulate):
    other = np.roll(BATCH, 5)
    whole, whole_loss = after(make_run(), BATCH, other)
    parts, loss = after(make_run(accumulate=accumulate), BATCH, other)
    assert int(parts.step) == 2  # optimizer steps, not micro-batches
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(parts.opt_state, whole.opt_state, rtol=1e-5, atol=1e-7)
    assert loss == pytest.approx(whole_loss, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_steps_are_traced_before_the_first_and_see_bytes(accumulate):
    seen = []

    def augment(key, step, images):
        seen.append((images.shape[0], str(images.dtype)))
        return images

    run = make_run(augment=augment, accumulate=accumulate)
    state = loop.create_state(run)
    steps = compile_steps(run, state, batch_of(run), kinds(run))
    assert set(seen) == {(12 // accumulate, "uint8")}
    before = len(seen)
    for event in (False, True, False):
        state, _ = steps[event](state, batch_of(run))
    assert len(seen) == before <= 2  # either kind of step, or the shapes and the micro-batch


def test_without_events_there_is_one_kind_of_step():
    run = make_run(method=jaxsparse.dense(total_steps=20))
    assert list(compile_steps(run, loop.create_state(run), batch_of(run), kinds(run))) == [False]


@pytest.mark.slow
def test_micro_batches_make_the_same_run(tmp_path):
    runs = [
        fashion_mnist.train(
            fashion_mnist.Config(
                out=tmp_path / str(k),
                model="lenet_300_100",
                schedule="rigl",
                sparsity=0.9,
                steps=60,
                eval_every=30,
                update_interval=10,
                accumulate=k,
            )
        )
        for k in (1, 4)
    ]
    one, four = (read_metrics(run["out"]) for run in runs)
    counts = lambda rows: [(r["step"], r.get("num_active"), r.get("num_empty")) for r in rows]
    assert counts(one) == counts(four)
    assert [run["num_active"] for run in runs] == [26_620] * 2
    losses = lambda rows: [r["train_loss"] for r in rows if "train_loss" in r]
    np.testing.assert_allclose(losses(one), losses(four), rtol=1e-3)
