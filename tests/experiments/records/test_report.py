"""What events and layers near empty leave in the record, from states made by hand."""

import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from experiments.options.schedules import make_method
from experiments.records import report
from jaxsparse.types import EventMetrics


@pytest.fixture
def state(key):
    params = {"a": {"kernel": jnp.ones((4, 5))}, "b": {"kernel": jnp.ones((5, 2))}}
    method = jaxsparse.static(sparsity=0.5, total_steps=9, distribution=jaxsparse.uniform())
    return jaxsparse.TrainState.create(
        apply_fn=lambda: None,
        params=params,
        tx=optax.sgd(0.1),
        method=method,
        key=key,
        track_exploration=True,
    )


def after(state, *, active, dropped, grown):
    """The state after an event with these counts, at step 3."""
    counts = lambda numbers: jnp.array(numbers, jnp.int32)
    metrics = EventMetrics(
        num_active=counts(active),
        num_dropped=counts(dropped),
        num_grown=counts(grown),
        num_restarted=counts(grown),
        num_nan=counts([0, 1]),
    )
    return state.replace(event_metrics=metrics, step=jnp.int32(3))


@pytest.mark.parametrize(
    ("schedule", "options", "note"),
    [
        ("rigl", {}, ""),
        ("dense", {}, ""),
        (
            "rigl",
            {"pattern": "2:4", "pattern_layers": "^a/"},
            "note: --sparsity=0.9 was asked for, the run will have 0.633, because of "
            "--pattern=2:4 --pattern_layers=^a/; --plan shows each layer",
        ),
    ],
)
def test_another_sparsity_than_the_one_asked_for_is_said(schedule, options, note):
    """Two thirds of the weights at 50 %, one third at 90 %."""
    shapes = {"a": {"kernel": jnp.zeros((8, 100))}, "b": {"kernel": jnp.zeros((4, 100))}}
    plan = make_method(schedule, sparsity=0.9, steps=100, **options).plan(shapes)
    config = {"schedule": schedule, "sparsity": 0.9, **options}
    assert report.sparsity_note(plan, config) == note


def test_with_sharing_a_sparsity_is_that_of_the_network_without():
    shapes = {"a": {"kernel": jnp.zeros((10, 100))}}
    plan = make_method("rigl", sparsity=0.8, steps=100).plan(shapes)
    config = {"schedule": "rigl", "sparsity": 0.9}
    assert "the run will have 0.800" in report.sparsity_note(plan, config)
    assert report.sparsity_note(plan, config, 2000) == ""


def test_the_record_of_the_start_lists_the_layers(state):
    assert report.layer_counts(state) == [10, 5]


def test_the_record_of_an_event(state):
    record = report.event_scalars(after(state, active=[8, 4], dropped=[5, 1], grown=[2, 1]))
    assert record == {
        "density": 12 / 30,
        "num_active": 12,
        "num_dropped": 6,
        "num_grown": 3,
        "num_restarted": 3,
        "num_nan": 1,
        "num_left_out": 0,
        "num_empty": 0,
        "churn": 0.25,
        "exploration_rate": 0.5,
        "layer_num_active": [8, 4],
    }


@pytest.mark.parametrize(
    ("active", "dropped", "warnings"),
    [
        ([8, 4], [5, 1], []),
        ([8, 0], [5, 4], ["warning: no weight is left in b/kernel after step 3"]),
        ([8, 0], [5, 0], []),  # empty since an earlier event
        (
            [0, 0],
            [9, 1],
            [f"warning: no weight is left in {p}/kernel after step 3" for p in ("a", "b")],
        ),
    ],
)
def test_a_layer_that_empties_is_said_once(state, active, dropped, warnings):
    assert report.emptied(after(state, active=active, dropped=dropped, grown=[0, 0])) == warnings


def test_global_pruning_is_told_how_to_leave_a_layer_some(state):
    method = jaxsparse.gmp(sparsity=0.5, total_steps=9, update_interval=1)
    state = after(state, active=[8, 0], dropped=[5, 4], grown=[0, 0]).replace(method=method)
    (warning,) = report.emptied(state)
    assert warning.endswith("in b/kernel after step 3; --min_keep=N leaves N in every layer")
