"""Plans of narrower networks: which units go under each ranking and limit, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.structured import (
    activation_importance,
    channel_groups,
    channel_importance,
    check_narrow,
    group_costs,
    plan_of_units,
    plan_widths,
    random_importance,
)

pytestmark = pytest.mark.variants  # our own code, which knows little of versions


def network(p, x):
    """Two hidden layers, the first with a norm's scale, and a sum of two branches."""
    x = jax.nn.relu((x @ p["a"]["kernel"]) * p["norm"]["scale"][None] + p["a"]["bias"][None])
    x = jax.nn.relu(x @ p["b"]["kernel"] + x @ p["c"]["kernel"])
    return x @ p["d"]["kernel"]


SIZES = {"a": (3, 8), "b": (8, 12), "c": (8, 12), "d": (12, 2)}


def _params(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
        for name, shape in SIZES.items()
    }
    params["a"]["bias"] = jnp.asarray(rng.normal(size=8), jnp.float32)
    params["norm"] = {"scale": jnp.asarray(rng.normal(size=8), jnp.float32)}
    return params


PARAMS, X = _params(), jnp.ones((4, 3))
GROUPS = channel_groups(network, PARAMS, X)
COSTS = group_costs(GROUPS)
GIVEN = {"a": np.arange(8.0), "b": np.arange(12.0)[::-1]}
"""Importances: of "a" the first units go first, of "b" the last ones."""


def test_importance_is_the_sum_over_members():
    scores = jax.tree.map(jnp.abs, PARAMS)
    found = channel_importance(GROUPS, scores, normalised=False)
    np.testing.assert_allclose(found["a"], scores["a"]["kernel"].sum(0), rtol=1e-6)
    both = (scores["b"]["kernel"] + scores["c"]["kernel"]).sum(0)
    np.testing.assert_allclose(found["b"], both, rtol=1e-6)
    reads = channel_importance(GROUPS, scores, of="input", normalised=False)
    wanted = (scores["b"]["kernel"] + scores["c"]["kernel"]).sum(1)
    np.testing.assert_allclose(reads["a"], wanted, rtol=1e-6)
    norms = channel_importance(GROUPS, scores, of="norm")
    np.testing.assert_allclose(
        norms["a"], scores["norm"]["scale"] / scores["norm"]["scale"].mean(), rtol=1e-6
    )
    np.testing.assert_allclose(norms["b"], both / both.mean(), rtol=1e-6)  # it has no norm
    taylor = jax.tree.map(lambda w: w * jnp.sign(w[:1] if w.ndim > 1 else w), PARAMS)
    found = channel_importance(GROUPS, taylor, normalised=False)
    np.testing.assert_allclose(found["a"], abs(taylor["a"]["kernel"].sum(0)), rtol=1e-5)


def test_other_importances():
    means = {"a": -np.arange(8.0), "b": np.zeros(12)}
    found = activation_importance(GROUPS, means)
    np.testing.assert_allclose(found["a"], np.arange(8) / 3.5)
    np.testing.assert_array_equal(found["b"], np.zeros(12))
    one, again = random_importance(GROUPS, 3), random_importance(GROUPS, 3)
    np.testing.assert_array_equal(one["b"], again["b"])
    assert len(np.unique(one["b"])) == 12


def test_global_ranking_stops_at_the_first_removal_that_meets_the_target():
    plan = plan_widths(GROUPS, GIVEN, COSTS, target=0.6)
    full = COSTS({})
    assert COSTS(plan.widths) <= 0.6 * full
    removed = {name: np.setdiff1d(np.arange(len(x)), plan.kept[name]) for name, x in GIVEN.items()}
    np.testing.assert_array_equal(removed["a"], np.arange(len(removed["a"])))
    np.testing.assert_array_equal(removed["b"], np.arange(12)[-len(removed["b"]) :])
    highest = max(float(GIVEN[name][units].max()) for name, units in removed.items())
    one_less = {
        name: len(GIVEN[name]) - int((GIVEN[name][units] < highest).sum())
        for name, units in removed.items()
    }
    assert COSTS(one_less) > 0.6 * full or one_less == plan.widths
    size = sum(x.size for x in jax.tree.leaves(plan.apply(PARAMS)))
    assert size == COSTS(plan.widths)


def test_layer_ranking_takes_the_same_share_of_each_group():
    scaled = GIVEN | {"b": 1e6 * (1 + GIVEN["b"])}
    plan = plan_widths(GROUPS, scaled, COSTS, target=0.6, ranking="layer")
    shares = [len(plan.kept[name]) / len(x) for name, x in GIVEN.items()]
    assert abs(shares[0] - shares[1]) <= 1 / 8
    assert plan_widths(GROUPS, scaled, COSTS, target=0.6).widths["b"] == 12


def test_isomorphic_ranking_compares_groups_of_one_structure():
    def chain(p, x):
        for layer in range(3):
            x = jax.nn.relu(x @ p[f"l{layer}"])
        return jnp.tanh(x[:, None] * jnp.ones((1, 2, 1)) + p["bias"][None, None]).sum(1) @ p["out"]

    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {
        "l0": make(3, 6),
        "l1": make(6, 6),
        "l2": make(6, 6),
        "bias": make(6),
        "out": make(6, 2),
    }
    groups = channel_groups(chain, params, X)
    assert groups["l0"].signature == groups["l1"].signature != groups["l2"].signature
    importance = {"l0": np.arange(6.0), "l1": 10 + np.arange(6.0), "l2": 100 + np.arange(6.0)}
    plan = plan_widths(groups, importance, group_costs(groups), target=0.6, ranking="isomorphic")
    assert plan.widths["l1"] == 6  # all of l0 goes before
    assert plan.widths["l0"] < 4 and plan.widths["l2"] < 6


def test_widths_are_rounded_and_kept_from_below():
    plan = plan_widths(GROUPS, GIVEN, COSTS, target=0.6, round_to=4)
    assert all(width % 4 == 0 for width in plan.widths.values())
    plan = plan_widths(GROUPS, GIVEN, COSTS, target=0.6, min_share={"^a$": 1.0})
    assert plan.widths["a"] == 8
    plan = plan_widths(GROUPS, GIVEN, COSTS, target=1.0)
    assert plan.widths == {"a": 8, "b": 12}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": 0.02},
            r"target 0.02 cannot be reached: the smallest widths leave 0.\d+ of the",
        ),
        ({"target": 0.0}, r"target 0.0 must be in \(0, 1\]"),
        ({"target": 0.5, "round_to": 0}, "round_to 0 must be a whole number, at least 1"),
        ({"target": 0.5, "ranking": "best"}, "ranking 'best' must be one of global, layer, isomor"),
        ({"target": 0.5, "min_share": 2.0}, r"min_share 2.0 must be in \[0, 1\]"),
        ({"target": 0.5, "min_share": {"z": 0.5}}, "min_share 'z' matches no group"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        plan_widths(GROUPS, GIVEN, COSTS, **options)


def test_wrong_importances():
    for wrong, message in (
        ({"a": GIVEN["a"]}, r"the importance of b is none, and must be \(12,\)"),
        (GIVEN | {"a": np.ones(3)}, r"the importance of a is \(3,\), and must be \(8,\)"),
        (GIVEN | {"a": np.full(8, np.nan)}, "the importance of a is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_widths(GROUPS, wrong, COSTS, target=0.5)
    nan = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
    with pytest.raises(ValueError, match="a score of a/bias is not finite"):
        channel_importance(GROUPS, nan)
    with pytest.raises(ValueError, match="leaf d/kernel is in one of scores and groups"):
        channel_importance(GROUPS, {k: x for k, x in PARAMS.items() if k != "d"})
    with pytest.raises(ValueError, match="of 'best' must be one of output, input"):
        channel_importance(GROUPS, PARAMS, of="best")
    with pytest.raises(ValueError, match="means lack the group b"):
        activation_importance(GROUPS, {"a": np.ones(8)})


def test_a_plan_slices_every_tree_of_the_network():
    plan = plan_widths(GROUPS, GIVEN, COSTS, target=0.6)
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))
    tree = {"params": PARAMS, "masks": jaxsparse.dense_masks(PARAMS), "tx": tx.init(PARAMS)}
    found = plan.apply(tree | {"step": jnp.int32(3)})
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    params = plan.apply(PARAMS)
    assert shapes(found["params"]) == shapes(found["masks"]) == shapes(params)
    assert shapes(found["tx"]) == shapes(tx.init(params))
    np.testing.assert_array_equal(
        params["b"]["kernel"], PARAMS["b"]["kernel"][plan.kept["a"]][:, plan.kept["b"]]
    )
    abstract = plan.apply(jax.eval_shape(lambda: PARAMS))
    assert shapes(abstract) == shapes(params)
    assert isinstance(abstract["d"]["kernel"], jax.ShapeDtypeStruct)


def test_trees_of_another_network_are_refused():
    plan = plan_of_units(GROUPS, {"a": [0, 1]})
    with pytest.raises(ValueError, match=r"leaf a/bias has shape \(9,\), and a/bias of the net"):
        plan.apply(PARAMS | {"a": {"kernel": jnp.ones((3, 9)), "bias": jnp.ones(9)}})
    with pytest.raises(ValueError, match="no leaf of the tree .*has the path of one of the"):
        plan.apply({"z": jnp.ones(3)})
    factored = {"v_row": {"a": {"kernel": jnp.ones(3)}}}
    with pytest.raises(ValueError, match="or a slot unlike its weight"):
        plan.apply(factored)
    with pytest.raises(ValueError, match=r"units \[8\] of a must be one or more in \[0, 8\)"):
        plan_of_units(GROUPS, {"a": [8]})
    with pytest.raises(ValueError, match=r"units \[\] of a must be one or more"):
        plan_of_units(GROUPS, {"a": np.zeros(8, bool)})
    with pytest.raises(KeyError, match="no group z; there are a, b"):
        plan_of_units(GROUPS, {"z": [0]})


@pytest.mark.parametrize(
    ("before", "left", "after"),
    [
        (("x", "y"), 4, ("x", "y")),
        (("x", "y"), 5, ("x", None)),  # two devices do not divide five channels
        ((None, ("x", "y")), 4, (None, ("x", "y"))),
        ((None, ("x", "y")), 6, (None, None)),
        (("x",), 5, ("x", None)),
    ],
)
def test_leaves_on_a_mesh_with_explicit_axes_keep_their_sharding(before, left, after):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    params = {"a": jnp.arange(32.0).reshape(4, 8), "b": jnp.ones((8, 2))}
    groups = channel_groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
    plan = plan_of_units(groups, {"a": range(left)})
    on_mesh = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    placed = jax.device_put(params, {"a": on_mesh(*before), "b": on_mesh()})
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed
    )
    for apply in (plan.apply, jax.jit(plan.apply)):
        found = apply(placed)
        assert found["a"].sharding.is_equivalent_to(on_mesh(*after), 2)
        jax.tree.map(np.testing.assert_array_equal, found, plan.apply(params))
    assert plan.apply(abstract)["a"].sharding.is_equivalent_to(on_mesh(*after), 2)
    zeroed = plan.zero(placed)
    assert zeroed["a"].sharding.is_equivalent_to(placed["a"].sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, zeroed, plan.zero(params))
    assert not np.asarray(zeroed["a"])[:, left:].any()


def test_slots_in_parts_are_refused():
    plan = plan_of_units(GROUPS, {"a": [0, 1]})
    state = optax.sm3(0.1).init(PARAMS)
    for change in (plan.apply, plan.zero):
        with pytest.raises(
            ValueError, match=r"mu/a/bias/0 of shape \(8,\) is a part of a slot of a/bias"
        ):
            change(state)
    whole = plan_of_units(GROUPS, {})  # nothing is removed
    assert jax.tree.map(jnp.shape, whole.apply(state)) == jax.tree.map(jnp.shape, state)


def test_the_check_compares_with_zeros_and_finds_a_constant():
    plan = plan_widths(GROUPS, GIVEN, COSTS, target=0.6)
    assert check_narrow(plan, network, network, PARAMS, X) < 1e-6
    wrong = lambda p, x: network(p, x) * (1 + 0.1 * p["a"]["bias"].shape[0])
    with pytest.raises(ValueError, match="outputs differ by .* of the largest, above 0.0001"):
        check_narrow(plan, network, wrong, PARAMS, X)
    with pytest.raises(ValueError, match="outputs had shapes"):
        check_narrow(plan, network, lambda p, x: network(p, x)[:1], PARAMS, X)


def test_a_norm_over_channels_is_noted_and_may_differ():
    def normed(p, x):
        x = x @ p["a"]
        return (x - x.mean(1, keepdims=True)) @ p["b"]

    params = {"a": jnp.arange(12.0).reshape(3, 4) ** 2, "b": jnp.ones((4, 2)).at[0].set(3.0)}
    groups = channel_groups(normed, params, X)
    plan = plan_of_units(groups, {"a": [0, 2, 3]})
    assert plan.notes and "note: a: " in str(plan)
    assert check_narrow(plan, normed, normed, params, X) > 0.01


def test_the_table_names_widths_and_costs():
    text = str(plan_widths(GROUPS, GIVEN, COSTS, target=0.6))
    lines = text.splitlines()
    assert lines[0].split() == ["group", "width", "after", "kept", "made", "by"]
    assert lines[2].startswith("b") and "b/kernel and 1 more" in lines[2]
    assert lines[-1].startswith("parameters: 256 -> ")


def test_every_target_that_can_be_reached_is():
    """0.29 * 200 is below 58 in floats."""
    params = {"a": jnp.ones((1, 100)), "b": jnp.ones((100, 1))}
    groups = channel_groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 1)))
    plan = plan_widths(
        groups, {"a": np.arange(100.0)}, group_costs(groups), target=0.29, min_share=0.29
    )
    assert plan.widths == {"a": 29}


def test_units_are_integers_or_a_whole_mask():
    for wrong in (np.ones(5, bool), [0.5, 1.5]):
        with pytest.raises(ValueError, match=r"units of a are .*must be integers or bool\[8\]"):
            plan_of_units(GROUPS, {"a": wrong})
    with pytest.raises(ValueError, match="min_share '\\[' is no regular expression"):
        plan_widths(GROUPS, GIVEN, COSTS, target=0.5, min_share={"[": 0.5})


def test_leaves_are_known_by_their_whole_path_or_without_the_collection():
    def adapted(v, x):
        p, lora = v["params"], v["lora"]
        return jax.nn.relu(x @ (p["a"] + lora["a"])) @ p["b"]

    variables = {
        "params": {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))},
        "lora": {"a": jnp.ones((3, 6))},
    }
    plan = plan_of_units(channel_groups(adapted, variables, X), {"params/a": [0, 1]})
    assert plan.apply(variables)["lora"]["a"].shape == (3, 2)
    with pytest.raises(ValueError, match="leaf a may be lora/a or params/a; give the whole tree"):
        plan.apply(variables["params"])
    plan = plan_of_units(GROUPS, {"a": [0, 1]})
    tree = {"params": PARAMS, "teacher": {"deep": {"kernel": jnp.ones((3, 8))}}}
    found = plan.apply(tree)
    assert found["params"]["a"]["kernel"].shape == (3, 2)
    assert found["teacher"]["deep"]["kernel"].shape == (3, 8)
