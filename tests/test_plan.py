"""The dry run: its numbers are those of the timetable, its table says when it estimates."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse

PARAMS = {
    "a": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)},
    "b": {"kernel": jax.ShapeDtypeStruct((4, 16), jnp.float32)},
    "c": {"bias": jax.ShapeDtypeStruct((9,), jnp.float32)},  # not counted
}


def test_global_plan():
    # Item 1: T = 4, s_f = .9 of 80 weights: 80 - floor(80 s), and s = .9 gives 8.
    plan = jaxsparse.gmp(sparsity=0.9, total_steps=8, update_interval=1).plan(PARAMS)
    assert plan.num_prunable == 80
    assert tuple(row[:5] for row in plan.rows) == (
        #   step active density r  replaced
        (0, 80, 1.0000, 0.0, 0),
        (1, 39, 0.4875, 0.0, 0),  # s = .5203125: 41.6
        (2, 17, 0.2125, 0.0, 0),  # s = .7875: 63.0
        (3, 10, 0.1250, 0.0, 0),  # s = .8859375: 70.9
        (4, 8, 0.1000, 0.0, 0),
    )
    assert plan.rows[0].layers == {"a/kernel": 16, "b/kernel": 64}
    assert plan.rows[-1].layers == {"a/kernel": 2, "b/kernel": 6}
    assert plan.layers_are_estimates


def test_layer_plan():
    plan = jaxsparse.gmp(sparsity=0.5, total_steps=8, update_interval=1, scope="layer").plan(PARAMS)
    assert [row.num_active for row in plan.rows] == [80, 57, 45, 41, 40]
    assert plan.rows[0].layers == {"a/kernel": 16, "b/kernel": 64}
    assert plan.rows[-1].layers == {"a/kernel": 11, "b/kernel": 29}  # item 4
    assert not plan.layers_are_estimates


def test_plan_of_an_exchange():
    method = jaxsparse.rigl(
        sparsity=0.5, total_steps=100, update_interval=25, stop_step=75, drop_fraction=0.3
    )
    plan = method.plan(PARAMS)
    assert tuple(row[:5] for row in plan.rows) == (
        (0, 40, 0.5, 0.0, 0),
        (25, 40, 0.5, 0.225, 9),
        (50, 40, 0.5, 0.075, 3),
    )
    assert plan.rows[0].layers == {"a/kernel": 11, "b/kernel": 29}
    assert plan.rows[-1].layers == {"a/kernel": 11, "b/kernel": 29}
    assert not plan.layers_are_estimates


def test_table():
    method = jaxsparse.granet_st(
        sparsity=0.75, initial_sparsity=0.5, total_steps=4000, drop_fraction=0.5,
        final_drop_fraction=0.5,
    )  # fmt: skip
    # s = .5 + .25 (1 - (1/2)^3) = .71875 of 80: 80 - 57; then .75: 80 - 60.
    assert str(method.plan(PARAMS)).splitlines() == [
        "granet_st: 3 events in 4,000 steps, 20 of 80 weights active at the end (sparsity 0.75)",
        "",
        "      step        active  sparsity     drop    replaced",
        "         0            40    0.5000   0.0000           0",
        "     1,000            23    0.7125   0.5000          12",
        "     2,000            20    0.7500   0.5000          10",
        "     3,000            20    0.7500   0.5000          10",
        "",
        "layer          weights         start end (estimate)",
        "a/kernel            16            11              6",
        "b/kernel            64            29             14",
    ]


@pytest.mark.parametrize(("num_events", "num_lines"), [(23, 24), (24, 25), (1000, 25)])
def test_long_tables_leave_out_the_middle(num_events, num_lines):
    plan = jaxsparse.rigl_itop(sparsity=0.5, total_steps=num_events + 1, update_interval=1).plan(
        PARAMS
    )
    lines = str(plan).splitlines()
    table = lines[3 : lines.index("", 3)]
    assert len(table) == num_lines
    assert int(table[-1].split()[0].replace(",", "")) == num_events
    if num_events > num_lines:
        assert table[20].split("(")[1] == f"{num_events + 1 - 24} more events)"


def test_plan_of_given_masks():
    params = jax.tree.map(lambda x: jnp.ones(x.shape), PARAMS)
    masks = jaxsparse.dense_masks(params)
    masks["a"]["kernel"] = jnp.eye(4, dtype=bool)
    plan = jaxsparse.static(masks=masks, total_steps=7).plan(params)
    assert tuple(row[:5] for row in plan.rows) == ((0, 68, 0.85, 0.0, 0),)
    assert plan.rows[0].layers == {"a/kernel": 4, "b/kernel": 64}
    assert plan.rows[-1].layers == {"a/kernel": 4, "b/kernel": 64}
    assert plan.total_steps == 7


def test_plan_refuses_what_training_could_not_do():
    method = jaxsparse.gmp(sparsity=0.99, total_steps=8, update_interval=1, scope="layer")
    with pytest.raises(ValueError, match="leaves 1 active weights for 2 layers, .* at most 0.975"):
        method.plan(PARAMS)
