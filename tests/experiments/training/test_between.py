"""Changes of the state between steps: when they are made, and that a run cut off repeats none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments import loop
from experiments.records.metrics import is_looked_at
from experiments.records.run_folder import read_metrics
from experiments.training import between
from experiments.training.run import Between
from tests.checkpoint.states import bits
from tests.experiments.small_runs import make_run

CONFIG = {"model": "net", "schedule": "dense"}


def halved(state):
    """Halves the momentum, and leaves the counts as they are."""
    half = lambda x: x / 2 if jnp.issubdtype(x.dtype, jnp.floating) else x
    return state.replace(opt_state=jax.tree.map(half, state.opt_state))


def run_of(*changes, **fields):
    method = jaxsparse.dense(total_steps=20)
    fields = {"tx": optax.sgd(0.1, momentum=0.5), "method": method, "log_every": 50} | fields
    return make_run(between=changes, **fields)


HALVED = Between(lambda step: step in (3, 12), halved)


def test_changes_come_in_their_order_at_their_steps():
    run = run_of(
        HALVED, Between(lambda step: step == 12, lambda s: s.replace(params=s.opt_state[0].trace))
    )
    assert [step for step in range(21) if between.is_due(run, step)] == [3, 12]
    assert [step for step in range(21) if is_looked_at(run, step)] == [0, 3, 5, 10, 12, 15, 20]
    state = loop.create_state(run)
    state = state.replace(opt_state=jax.tree.map(jnp.ones_like, state.opt_state))
    for step, momentum in [(2, 1.0), (3, 0.5), (12, 0.5)]:
        found = between.after(run, state, step)
        for x in jax.tree.leaves(found.opt_state[0].trace):
            np.testing.assert_array_equal(x, momentum)
    for x in jax.tree.leaves(found.params):
        np.testing.assert_array_equal(x, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(params={}), "gave a state of another structure"),
        (
            lambda s: s.replace(step=jnp.float32(3)),
            r"after step 3 made .step float32\[\], and the compiled steps take int32\[\]",
        ),
    ],
)
def test_a_state_of_another_form_is_refused(change, message):
    run = run_of(Between(lambda step: step == 3, change))
    with pytest.raises(ValueError, match=message):
        between.after(run, loop.create_state(run), 3)


@pytest.mark.variants
def test_a_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """From the checkpoint after step 10, so the change after step 12 is made once more."""
    run, record = run_of(HALVED), loop.record

    def cut_off(*args):
        if args[2] == 15:
            raise KeyboardInterrupt
        return record(*args)

    loop.train(run, tmp_path / "straight", CONFIG, title="")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "record", cut_off)
        with pytest.raises(KeyboardInterrupt):
            loop.train(run, tmp_path / "run", CONFIG, title="")
    loop.train(run, tmp_path / "run", CONFIG, title="")
    end = lambda name: loop.progress.resume(
        tmp_path / name / "checkpoints", run, loop.create_state(run)
    )
    assert bits(end("run").state) == bits(end("straight").state)
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "straight")
