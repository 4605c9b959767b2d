"""The dry run: its numbers are those of the timetable, its table says when it estimates."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse

PARAMS = {
    "a": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)},
    "b": {"kernel": jax.ShapeDtypeStruct((4, 16), jnp.float32)},
    "c": {"bias": jax.ShapeDtypeStruct((9,), jnp.float32)},  # not counted
}


def test_global_plan():
    # Zhu and Gupta 2017, eq. 1: T = 4, s_f = .9 of 80 weights: 80 - floor(80 s), and .9 gives 8.
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
    assert plan.rows[-1].layers == {"a/kernel": 11, "b/kernel": 29}  # ERK: .714 of 16, .446 of 64
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
        "a/kernel            16            11              5",  # 5.5 and 14.5
        "b/kernel            64            29             15",
    ]


def test_table_says_which_matrices_stay_dense():
    shape = jax.ShapeDtypeStruct((9, 4), jnp.float32)
    params = PARAMS | {"wte": {"weight": shape}, "lora": {"a": shape}}
    plan = jaxsparse.static(sparsity=0.5, total_steps=7).plan(params)
    assert plan.dense == {"c/bias": (9,), "lora/a": (9, 4), "wte/weight": (9, 4)}
    line = "and 81 parameters that stay dense: lora/a (9, 4), wte/weight (9, 4); and 1 vector"
    assert str(plan).splitlines()[-1] == line

    rules = ((r"wte|lora", True), (r"", None))
    pruned = jaxsparse.static(sparsity=0.5, total_steps=7, prunable=rules).plan(params)
    assert pruned.dense == {"c/bias": (9,)}
    assert "dense" not in str(pruned)  # biases and norms go without saying


FLOPS = {"a/kernel": 1600, "b/kernel": 640, "other": 60}


def test_table_with_flops():
    method = jaxsparse.rigl(
        sparsity=0.5, total_steps=100, update_interval=25, stop_step=75, drop_fraction=0.3
    )
    plan = method.plan(PARAMS, FLOPS)
    # A forward pass: 11/16 of 1600, 29/64 of 640, all of 60: 1450 of 2300. Two dense gradients.
    assert [row.flops for row in plan.rows] == [1450, 1450, 1450]
    assert plan.train_flops == 3 * 1450 * 100 + 2 * (2300 - 1450)
    assert plan.train_flops_ratio == pytest.approx((435_000 + 1700) / (3 * 2300 * 100))
    assert plan.test_flops_ratio == pytest.approx(1450 / 2300)
    assert str(plan).splitlines() == [
        "rigl: 2 events in 100 steps, 40 of 80 weights active at the end (sparsity 0.5)",
        "FLOPs: training 0.6329 of dense (dense gradient at events), inference 0.6304 of 2,300",
        "",
        "      step        active  sparsity     drop    replaced               FLOPs",
        "         0            40    0.5000   0.0000           0               1,450",
        "        25            40    0.5000   0.2250           9               1,450",
        "        50            40    0.5000   0.0750           3               1,450",
        "",
        "layer          weights         start            end               FLOPs",
        "a/kernel            16            11             11               1,100",
        "b/kernel            64            29             29                 290",
    ]


def test_costs_of_a_global_method_are_called_estimates():
    plan = jaxsparse.gmp(sparsity=0.5, total_steps=8, update_interval=1).plan(PARAMS, FLOPS)
    lines = str(plan).splitlines()
    assert lines[1].startswith("FLOPs: training about 0.")
    assert lines[3].endswith("FLOPs (estimate)")
    assert "dense gradient" not in lines[1]  # GMP needs none


def test_plan_without_flops_has_no_costs():
    plan = jaxsparse.static(sparsity=0.5, total_steps=7).plan(PARAMS)
    assert (plan.train_flops, plan.train_flops_ratio, plan.test_flops_ratio) == (None,) * 3
    assert plan.rows[0].flops is None
    assert "FLOPs" not in str(plan)


def test_flops_of_another_network_are_refused():
    method = jaxsparse.static(sparsity=0.5, total_steps=7)
    # One of two leaves agrees: the other one's cost would count as dense in a network without it.
    with pytest.raises(ValueError, match="flops has a leaf fc/kernel, which params lacks"):
        method.plan(PARAMS, {"a/kernel": 3, "fc/kernel": 3, "other": 60})
    with pytest.raises(ValueError, match="flops has no prunable leaf; it has c/bias, other"):
        method.plan(PARAMS, {"c/bias": 3, "other": 60})


@pytest.mark.parametrize(
    ("flops", "message"),
    [
        ({"a/kernel": 0, "other": 0}, "flops of a/kernel, other add up to 0; they must be above 0"),
        ({"a/kernel": -1, "b/kernel": 3}, "flops at a/kernel is -1; it must be at least 0"),
        ({}, "flops has no prunable leaf; it has nothing"),
    ],
)
def test_flops_that_no_network_has(flops, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.static(sparsity=0.5, total_steps=7).plan(PARAMS, flops)


def test_estimates_follow_the_fan_in_and_keep_to_the_counts():
    # One threshold t on normal weights of variance 1 / fan-in keeps erfc(t sqrt(fan_in / 2)) of
    # them: erfc(t) at fan-in 2, erfc(2 t) at 8. They add up to .5, a quarter of both layers, at
    # t = .5894: 64 * .4045 = 25.9 and 64 * .0955 = 6.1.
    params = {
        "a": {"kernel": jax.ShapeDtypeStruct((2, 32), jnp.float32)},
        "b": {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)},
    }
    plan = jaxsparse.gmp(sparsity=0.75, total_steps=8, update_interval=1).plan(params)
    assert plan.rows[-1].layers == {"a/kernel": 26, "b/kernel": 6}
    for row in plan.rows:
        assert sum(row.layers.values()) == row.num_active
    for before, after in itertools.pairwise(plan.rows):
        assert all(after.layers[path] <= before.layers[path] for path in after.layers)
    # Of the 7 weights that are left at 95 %, b would have none.
    sparse = jaxsparse.gmp(sparsity=0.95, total_steps=8, update_interval=1, min_keep=2)
    assert sparse.plan(params).rows[-1].layers == {"a/kernel": 5, "b/kernel": 2}


def test_the_fan_in_is_that_of_the_product():
    """Leaves of one matrix each, in four layouts, keep as many of their weights."""
    shapes = {
        "q/kernel": (16, 2, 8),
        "out/kernel": (2, 8, 16),
        "fc/kernel": (16, 16),
        "fc/weight": (16, 16),
        "heads/kernel": (2, 16, 8),
        "wide/kernel": (4, 64),
    }
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    method = jaxsparse.gmp(sparsity=0.75, total_steps=8, update_interval=1)
    axes = {"heads/kernel": jaxsparse.KernelAxes((1,), (0, 2))}
    layers = method.plan(params, axes=axes).rows[-1].layers
    matrices = [layers[path] for path in shapes][:-1]
    assert max(matrices) - min(matrices) <= 1 and layers["wide/kernel"] > max(matrices)
    # Taken for a convolution of two taps, an output would sum over 32.
    assert method.plan(params).rows[-1].layers["heads/kernel"] < min(matrices)


@pytest.mark.parametrize(
    ("make", "name", "dense_gradient"),
    [
        (lambda **o: jaxsparse.dense(total_steps=10), "dense", "never"),
        (jaxsparse.static, "static", "never"),
        (jaxsparse.gmp, "gmp", "never"),
        (jaxsparse.set_, "set", "never"),
        (jaxsparse.set_itop, "set_itop", "never"),
        (jaxsparse.rigl, "rigl", "events"),
        (jaxsparse.rigl_itop, "rigl_itop", "events"),
        (jaxsparse.granet, "granet", "events"),
        (jaxsparse.granet_st, "granet_st", "events"),
        (jaxsparse.snfs, "snfs", "always"),
        (lambda **o: jaxsparse.granet(grow=jaxsparse.scores.random, **o), "granet", "never"),
    ],
)
def test_every_method_says_when_it_needs_the_dense_gradient(make, name, dense_gradient):
    options = {} if name in ("dense", "static") else {"update_interval": 1}
    method = make(sparsity=0.5, total_steps=10, **options)
    assert method.dense_gradient == dense_gradient
    assert method.plan(PARAMS, FLOPS).dense_gradient == dense_gradient
    assert str(method.plan(PARAMS)).startswith(f"{name}: ")


def test_composed_methods_say_so_by_what_they_are_made_of():
    timetable = jaxsparse.make_timetable(
        total_steps=4, update_interval=1, initial_density=0.5, drop_fraction=lambda step: 0.5
    )
    stages = [jaxsparse.exchange(rounding="floor")]
    compose = lambda stages, **options: jaxsparse.compose("mine", stages, timetable, **options)
    assert compose([]).dense_gradient == "never"
    assert compose(stages).dense_gradient == "events"
    assert compose(stages, observe=optax.ema(0.9)).dense_gradient == "always"
    assert compose(stages, dense_gradient="never").dense_gradient == "never"
    with pytest.raises(ValueError, match="dense_gradient 'rarely' must be 'never', 'events' or"):
        compose(stages, dense_gradient="rarely")


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


def test_tables_of_cycles_show_where_they_turn():
    method = jaxsparse.east(
        sparsity=0.5, total_steps=500, update_interval=50, multiplier=2.0, cycle_interval=4
    )
    lines = str(method.plan(PARAMS)).splitlines()
    # 80 - floor(80 (1 - .5 f)), f = 1 + (1 - cos .08 pi) / 2 at 4. From 48 to 52 nothing changes.
    assert [line[:24] for line in lines[3 : lines.index("", 3)]] == [
        "         0            40",
        "         4            41",
        "       ... (9 more event",
        "        44            79",
        "        48            80",
        "        56            79",
        "       ... (9 more event",
        "        96            41",
        "       100            40",
        "       104            41",
        "       ... (9 more event",
        "       144            79",
        "       148            80",
        "       156            79",
        "       ... (9 more event",
        "       196            41",
        "       200            40",
        "       250            40",
        "       300            40",
        "       350            40",
        "       400            40",
        "       450            40",
    ]


def test_tables_of_many_cycles_leave_out_some_turns():
    method = jaxsparse.with_cycles(
        jaxsparse.static(sparsity=0.5, total_steps=500),
        num_cycles=40,
        cycle_steps=12,
        multiplier=2.0,
        cycle_interval=3,
    )
    lines = str(method.plan(PARAMS)).splitlines()
    table = lines[3 : lines.index("", 3)]
    left_out = [int(line.split("(")[1].split()[0]) for line in table if "..." in line]
    assert len(table) - len(left_out) <= 24
    assert sum(left_out) + len(table) - len(left_out) == 161
    assert table[-1].split()[:2] == ["480", "40"]


def test_estimates_rise_and_fall_with_the_total_and_come_back():
    method = jaxsparse.with_cycles(
        jaxsparse.granet_st(sparsity=0.75, total_steps=40, update_interval=4, stop_step=8),
        num_cycles=1,
        cycle_steps=16,
        cycle_interval=1,
    )
    rows = method.plan(PARAMS).rows
    for before, after in itertools.pairwise(rows):
        assert sum(after.layers.values()) == after.num_active
        rises = after.num_active >= before.num_active
        low, high = (before, after) if rises else (after, before)
        assert all(low.layers[p] <= high.layers[p] <= {"a": 16, "b": 64}[p[0]] for p in low.layers)
    assert max(row.num_active for row in rows) > 50
    plain = jaxsparse.granet_st(sparsity=0.75, total_steps=40, update_interval=4, stop_step=8)
    assert rows[-1].layers == plain.plan(PARAMS).rows[-1].layers


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
