"""Rounds of pruning against a sort in NumPy: counts, nesting, exclusions, patterns, meshes."""

import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse
from tests.trees import FIXED, NUM_WEIGHTS, fill, others, prunable, trees

LEAVES = ("blocks/0/kernel", "conv/kernel", "pair/0/kernel", "pair/1/weight")


def counts(masks):
    return dict(zip(LEAVES, (int(np.sum(m)) for m in prunable(masks)), strict=True))


def slow(params, masks, rate):
    """One global round: sorts |w| of the survivors and drops floor(rate * survivors) of them."""
    w = np.concatenate([np.abs(np.asarray(x, np.float32)).ravel() for x in prunable(params)])
    alive = np.concatenate([m.ravel() for m in prunable(masks)])
    order = np.flatnonzero(alive)[np.argsort(w[alive], kind="stable")]
    alive[order[: math.floor(rate * len(order) + 1e-9)]] = False
    return alive


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounds_are_those_of_a_sort_and_nest(dtype):
    masks = jaxsparse.dense_masks(fill(FIXED, 0))
    for r in range(8):
        params = fill(FIXED, r, jnp.float32)
        if dtype == jnp.bfloat16:  # without ties, which a hash cuts
            ranks = iter(np.random.default_rng(r).permutation(NUM_WEIGHTS))
            rank = lambda x: np.reshape([next(ranks) + 1 for _ in range(x.size)], x.shape)  # noqa: B023
            params = jax.tree.map(lambda x: jnp.ones(x.shape, dtype), FIXED)
            leaves, structure = jax.tree.flatten(params)
            leaves = [jnp.asarray(rank(x), dtype) if x.ndim > 1 else x for x in leaves]
            params = jax.tree.unflatten(structure, leaves)
        new = jaxsparse.prune_survivors(params, masks, 0.2)
        found = np.concatenate([m.ravel() for m in prunable(new)])
        np.testing.assert_array_equal(found, slow(params, masks, 0.2))
        assert jax.tree.all(jax.tree.map(lambda a, b: ~(a & ~b).any(), new, masks))
        assert all(m.all() for m in others(new))
        masks = new


@hypothesis.given(
    size=st.integers(10, 2**31 - 1), rate=st.sampled_from([0.1, 0.15, 0.2, 0.5, 1 / 3, 0.9])
)
def test_densities_follow_the_power_by_one_rounding(size, rate):
    shape = {"kernel": jax.ShapeDtypeStruct((size, 1), jnp.float32)}
    rounds = 0
    for r in range(1, 30):
        if size * (1 - rate) ** r < 1 / rate + 1:
            break
        rounds = r
    hypothesis.assume(rounds)
    for row in jaxsparse.survivor_counts(shape, rate, rounds):
        ideal = size * (1 - rate) ** row.round
        assert ideal - 1e-4 * size**0.5 <= row.num_active < ideal + 1 + 1e-4 * size**0.5


def test_the_published_densities():
    """Ten rounds leave 10.7 %, fourteen 4.4 %, twenty 1.15 % of LeNet-300-100."""
    shapes = {
        f"fc{i}": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        for i, shape in enumerate([(784, 300), (300, 100), (100, 10)])
    }
    rows = jaxsparse.survivor_counts(shapes, 0.2, 20)
    found = [(rows[r].num_active, round(100 * rows[r].density, 2)) for r in (0, 1, 10, 14, 20)]
    assert found == [(266_200, 100), (212_960, 80), (28_584, 10.74), (11_708, 4.4), (3070, 1.15)]
    with pytest.raises(ValueError, match=r"rounds 60 is more than rate 0.2 allows: round 51 would"):
        jaxsparse.survivor_counts(shapes, 0.2, 60)
    # The original MNIST code: 20 % of the hidden layers, 10 % of the output layer.
    layer = {"scope": "layer", "rates": [("fc2", 0.1)]}
    (_, first) = jaxsparse.survivor_counts(shapes, 0.2, 1, **layer)
    assert first.layers == {"fc0/kernel": 188_160, "fc1/kernel": 24_000, "fc2/kernel": 900}


@hypothesis.given(
    tree=trees(), seed=st.integers(0, 2**16), scope=st.sampled_from(["global", "layer"])
)
@hypothesis.settings(max_examples=6)
def test_masks_have_the_planned_counts(tree, seed, scope):
    masks = jaxsparse.dense_masks(fill(tree, seed))
    rows = jaxsparse.survivor_counts(tree, 0.3, 3, scope=scope)
    for row in rows[1:]:
        params = fill(tree, seed + row.round)
        new = jaxsparse.prune_survivors(params, masks, 0.3, rounds=row.round, scope=scope)
        assert jaxsparse.num_active(new) == row.num_active
        assert jax.tree.all(jax.tree.map(lambda a, b: ~(a & ~b).any(), new, masks))
        masks = new


def test_rates_of_layers_and_excluded_ones():
    params, dense = fill(FIXED, 1), jaxsparse.dense_masks(fill(FIXED, 1))
    prune = lambda **options: counts(jaxsparse.prune_survivors(params, dense, 0.25, **options))
    assert list(prune().values()) != [12, 24, 1, 24] and sum(prune().values()) == 61 - 15
    assert prune(scope="layer") == dict(zip(LEAVES, [9, 18, 1, 18], strict=True))
    rates = [("conv", 0.5), ("pair/0", 0.0)]
    assert prune(scope="layer", rates=rates) == dict(zip(LEAVES, [9, 12, 1, 18], strict=True))
    # Without conv 37 weights compete: a quarter of them goes, or with quota "all" one of all 61.
    out = {"rates": [("conv", 0.0)]}
    of_rest, of_all = prune(**out), prune(**out, quota="all")
    assert of_rest["conv/kernel"] == of_all["conv/kernel"] == 24
    assert (sum(of_rest.values()), sum(of_all.values())) == (61 - 9, 61 - 15)
    for options, expected in [(out, of_rest), (out | {"quota": "all"}, of_all)]:
        row = jaxsparse.survivor_counts(params, 0.25, 1, **options)[1]
        assert row.num_active == sum(expected.values())
        assert sum(prune(**options, rounds=1).values()) == row.num_active
    assert prune(min_keep=1)["pair/0/kernel"] == 1


def test_nan_and_ties_and_what_is_inactive():
    params = {"kernel": jnp.array([[jnp.nan, 1.0, 1.0, 1.0, 9.0, 0.0]])}
    masks = {"kernel": jnp.array([[True, True, True, True, False, True]])}
    new = jaxsparse.prune_survivors(params, masks, 0.6)["kernel"]
    assert int(new.sum()) == 2
    assert not new[0, [0, 4, 5]].any()  # NaN and 0 go; the inactive 9 does not come back
    fewer = jaxsparse.prune_survivors(params, {"kernel": new}, 0.5, rounds=1)["kernel"]
    np.testing.assert_array_equal(fewer, new)  # below the target already


def test_groups_go_as_a_whole():
    w = jnp.repeat(jnp.repeat(jnp.arange(1.0, 9).reshape(2, 4), 2, 0), 2, 1)
    params, pattern = {"kernel": w}, jaxsparse.block((2, 2))
    masks = jaxsparse.prune_survivors(params, jaxsparse.dense_masks(params), 0.25, pattern=pattern)
    np.testing.assert_array_equal(masks["kernel"], w > 2)
    masks = jaxsparse.prune_survivors(params, masks, 0.2, rounds=3, pattern=pattern)
    jaxsparse.check_pattern(masks, pattern)
    row = jaxsparse.survivor_counts(params, 0.2, 3, pattern=pattern)[3]
    assert (row.num_active, row.size) == (20, 32) == (int(masks["kernel"].sum()), w.size)
    bad = {"kernel": masks["kernel"].at[0, 0].set(True)}
    with pytest.raises(ValueError, match="masks at kernel: the group of 4 that starts at"):
        jaxsparse.prune_survivors(params, bad, 0.2, pattern=pattern)
    sizes = [("a", pattern), ("b", None)]
    two = {"a": {"kernel": w}, "b": {"kernel": w}}
    with pytest.raises(ValueError, match="scope 'global' needs groups of one size.*scope='layer'"):
        jaxsparse.survivor_counts(two, 0.2, 1, pattern=sizes)
    (_, row) = jaxsparse.survivor_counts(two, 0.25, 1, pattern=sizes, rates=[("b", 0.0)])
    assert row.num_active == 24 + 32


def test_compiled_and_on_a_mesh_as_on_one_device():
    params = {"a": {"kernel": fill({"x": jax.ShapeDtypeStruct((16, 8), jnp.float32)}, 0)["x"]}}
    params["b"] = {"kernel": params["a"]["kernel"] + 0.005}
    dense = jaxsparse.dense_masks(params)
    for options in ({}, {"rounds": 3}, {"scope": "layer"}):
        expected = jaxsparse.prune_survivors(params, dense, 0.2, **options)
        prune = jax.jit(lambda p, m: jaxsparse.prune_survivors(p, m, 0.2, **options))  # noqa: B023
        chex.assert_trees_all_equal(prune(params, dense), expected)
    place = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    on_mesh = jax.device_put((params, dense), place)
    found = jaxsparse.prune_survivors(*on_mesh, 0.2, scope="layer")
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(expected))
    assert found["a"]["kernel"].sharding.is_equivalent_to(place, 2)


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (0.0, {}, r"rate 0.0 must be in \(0, 1\)"),
        (1.0, {}, r"rate 1.0 must be in \(0, 1\)"),
        (0.2, {"scope": "all"}, "scope 'all' must be 'global' or 'layer'"),
        (0.2, {"quota": "rest"}, "quota 'rest' must be 'pruned' or 'all'"),
        (0.2, {"scope": "layer", "min_keep": 2}, "min_keep 2 needs scope 'global'"),
        (0.2, {"rates": [("conv", 0.1)]}, "scope 'global' ranks all leaves together, and 'conv'"),
        (0.2, {"rates": [("conv", 1.0)]}, r"rates 'conv=1.0' must have a rate in \[0, 1\)"),
        (0.2, {"rates": [("cnov", 0.0)]}, "rates 'cnov' is the first match of no leaf"),
        (0.2, {"rates": [(".", 0.0)]}, "exclude every prunable leaf"),
        (0.2, {"rates": 0.1}, "must be .path regex, rate. pairs"),
        (0.2, {"rounds": 0}, "rounds 0 must be a whole number, at least 1"),
        (
            0.2,
            {"pattern": [("conv", jaxsparse.n_of_m(1, 2)), (".", None)]},
            "pattern '1:2' fixes the density of conv/k",
        ),
        (
            0.9,
            {"rates": [("conv", 0.0), ("pair/1", 0.0)], "quota": "all", "rounds": 9},
            "quota 'all'",
        ),
    ],
)
def test_refusals(rate, options, message):
    params = fill(FIXED, 0)
    with pytest.raises(ValueError, match=message):
        jaxsparse.prune_survivors(params, jaxsparse.dense_masks(params), rate, **options)


def test_masks_of_another_network_are_refused():
    params = fill(FIXED, 0)
    with pytest.raises(ValueError, match="masks has no leaf blocks/0/kernel"):
        jaxsparse.prune_survivors(params, {"conv": {"kernel": jnp.ones(3, bool)}}, 0.2)
    with pytest.raises(ValueError, match="masks at .* has dtype float32; it must be bool"):
        jaxsparse.prune_survivors(params, params, 0.2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'scoop'"):
        jaxsparse.prune_survivors(params, jaxsparse.dense_masks(params), 0.2, scoop="layer")
