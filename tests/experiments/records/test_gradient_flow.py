"""The masked gradient that a run records, against the gradient of a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments import loop
from experiments.data.augment import crop_and_flip
from experiments.records.gradient_flow import gradient_flow
from experiments.records.run_folder import read_metrics
from experiments.training.batches import Indexed
from experiments.training.steps import loss_and_grads
from tests.experiments.small_runs import Net, make_run

pytestmark = pytest.mark.variants  # long, and one Python shows it for both

AUGMENT = functools.partial(crop_and_flip, mode="zero", pad=2)


def expected_of(run, state, num_images):
    """Norms in NumPy, from the gradient of a step on the first images."""
    batch = Indexed(*map(jnp.asarray, run.dataset.train), jnp.arange(num_images))
    _, grads, _ = loss_and_grads(
        run._replace(augment=None), state.params, state.collections, 0, batch
    )
    squares = jax.tree.map(
        lambda g, m: np.sum(np.square(g, dtype=np.float64)[m]), grads, state.masks
    )
    layers = [squares[name]["kernel"] for name in ("Dense_0", "Dense_1")]
    return np.sqrt(sum(jax.tree.leaves(squares))), np.sqrt(layers)


@pytest.mark.parametrize(
    ("fields", "num_images"),
    [
        ({}, 12),
        ({"model": Net(norm=True), "augment": AUGMENT}, 12),
        ({"accumulate": 3}, 4),
        ({"execution": "sparse", "method": jaxsparse.static(sparsity=0.9, total_steps=20)}, 12),
    ],
    ids=["plain", "norm and augmentation", "micro-batches", "sparse execution"],
)
def test_norms_of_the_masked_gradient(fields, num_images):
    run = make_run(**fields)
    state = loop.create_state(run)
    total, layers = expected_of(run, state, num_images)
    found = gradient_flow(run, state)
    assert list(found) == ["grad_norm", "layer_grad_norm"]
    assert found["grad_norm"] == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(found["layer_grad_norm"], layers, rtol=1e-5)
    # Over all parameters: there are biases too.
    assert found["grad_norm"] > np.linalg.norm(found["layer_grad_norm"])


def test_dropout_is_the_same_every_time():
    run = make_run(model=Net(dropout_rate=0.5))
    state = loop.create_state(run)
    found = gradient_flow(run, state)
    assert gradient_flow(run, state.replace(step=state.step + 7)) == found
    assert gradient_flow(run._replace(seed=1), state) != found


def test_it_is_recorded_at_every_validation(tmp_path):
    run = make_run(eval_every=8, gradient_flow=True)
    loop.train(run, tmp_path, {"model": "net", "schedule": "rigl_itop"}, title="")
    records = [r for r in read_metrics(tmp_path) if "grad_norm" in r]
    assert [record["step"] for record in records] == [8, 16, 20]
    assert all(record["grad_norm"] > 0 for record in records)
    assert [len(record["layer_grad_norm"]) for record in records] == [2, 2, 2]
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"grad_norm" in events and b"layer_grad_norm" not in events
