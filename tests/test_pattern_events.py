"""Events under patterns: known answers, an oracle in NumPy, whole trees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.stages import exchange
from jaxsparse.types import Row
from tests.patterned import HALF, METHODS, RUN, TWO_OF_FOUR, drawn, picture, shapes_of


def run(stage, weights, signal, mask, pattern):
    weights, signal = jnp.asarray(weights, jnp.float32), jnp.asarray(signal, jnp.float32)
    mask = jnp.array([[c == "1" for c in row] for row in mask])
    row = Row(jnp.int32(2**31 - 1), HALF, groups={"w": pattern.cut(weights.shape)})
    new = jax.jit(lambda w, g, m: stage({"w": w}, {"w": g}, {"w": m}, row, None))(
        weights, signal, mask
    )
    return picture(new.masks["w"]), new.num_nan.tolist()


def test_an_exchange_of_n_of_m_drops_anywhere_and_grows_where_it_lost():
    # Two groups of four in every row; half of the six active ones go: .1, .2 of the first group of
    # row 0 and .3 of its second.
    w = [[0.1, 0.2, 0, 0, 0.3, 0, 9, 0], [5, 0, 0, 6, 0, 7, 8, 0]]
    g = [[0, 1, 2, 3, 0.5, 0.1, 9, 0.4], [9, 9, 9, 9, 9, 9, 9, 9]]
    mask = ["11001010", "10010110"]
    stage = exchange(rounding="floor")
    # 8 active: 4 go, the fourth is 5 of row 1; its group grows again, one of its three by the tie.
    after, num_nan = run(stage, w, g, mask, jaxsparse.n_of_m(2, 4, axis=-1))
    assert after[0] == "00111010"  # 3 and 2 of the first group; .3 comes back, .5 is its best
    assert after[1][4:] == "0110" and after[1][:4].count("1") == 2 and after[1][3] == "1"
    assert num_nan == [0]


def test_an_exchange_with_nan_keeps_the_pattern():
    w = [[np.nan, 1, 0, 0], [2, np.nan, 0, 0]]
    after, num_nan = run(
        exchange(rounding="floor"),
        w,
        [[1, 2, np.nan, 3]] * 2,
        ["1100"] * 2,
        jaxsparse.n_of_m(2, 4, -1),
    )
    assert after == ["0101", "1001"]
    assert num_nan == [4]  # two weights, two gradients


@pytest.mark.parametrize(
    ("n", "m", "axis", "shape"),
    [(2, 4, -2, (8, 5)), (1, 2, -2, (2, 2, 4, 3)), (3, 5, 0, (10, 3)), (1, 4, -1, (9, 8))],
)
def test_an_event_of_n_of_m_against_numpy(n, m, axis, shape, key):
    method = jaxsparse.with_pattern(
        jaxsparse.rigl_itop(sparsity=1 - n / m, total_steps=10, update_interval=1),
        jaxsparse.n_of_m(n, m, axis=axis),
    )
    tree = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    masks = method.init(key, tree)
    params, grads = jaxsparse.apply_masks(drawn(0, tree), masks), drawn(1, tree)
    event = method.update(params, grads, masks, 5)

    rows = lambda x: np.moveaxis(np.asarray(x["kernel"]), axis, -1).reshape(-1, m)
    w, g, mask = rows(params), rows(grads), rows(masks)
    num_dropped = int(np.ceil(0.2525 * mask.sum()))  # r is half-way from .5 to .005
    lowest = np.sort(abs(w[mask]))[num_dropped]
    stayed = mask & (abs(w) >= lowest)
    expected = stayed.copy()
    for row, scores in zip(expected, np.where(stayed, -1, abs(g)), strict=True):
        row[np.argsort(-scores)[: n - row.sum()]] = True
    np.testing.assert_array_equal(rows(event.masks), expected)
    np.testing.assert_array_equal(rows(event.kept), mask & expected)
    assert (expected != mask).any()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("1111", "0011"), ("0111", "0011"), ("0001", "1001"), ("0000", "1100"), ("1110", "0110")],
)
def test_masks_from_elsewhere_get_the_pattern(mask, expected):
    # Of too many the worst by |w| go, in place of too few the best by |g| come.
    params = {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
    grads = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
    method = jaxsparse.with_pattern(
        jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=1), TWO_OF_FOUR
    )
    masks = {"kernel": jnp.array([[c == "1"] for c in mask])}
    event = method.update(params, grads, masks, 60)
    jaxsparse.check_pattern(event.masks, TWO_OF_FOUR)
    assert picture(event.masks["kernel"].T) == [expected]
    assert (event.kept["kernel"] <= masks["kernel"]).all()


def test_an_exchange_of_blocks_is_one_of_their_sums():
    # Blocks of 2 x 2 with |w| 4, 8, 0, 0 and |g| 0, 0, 4.4, 4.
    w = [[4, 0, 2, -2, 0, 0, 0, 0], [0, 0, 2, -2, 0, 0, 0, 0]]
    g = [[0, 0, 0, 0, 1.1, 1.1, 4, 0], [0, 0, 0, 0, -1.1, 1.1, 0, 0]]
    params = {"kernel": jnp.array(w, jnp.float32)}
    method = jaxsparse.with_pattern(
        jaxsparse.rigl(sparsity=0.5, total_steps=100, update_interval=1, drop_fraction=1.0),
        jaxsparse.block((2, 2)),
    )
    masks = {"kernel": jnp.array([[True] * 4 + [False] * 4] * 2)}
    step = 35  # floor(2 r) = 1
    event = method.update(params, {"kernel": jnp.array(g, jnp.float32)}, masks, step)
    assert picture(event.masks["kernel"]) == ["00111100"] * 2
    assert picture(event.kept["kernel"]) == ["00110000"] * 2
    assert event.metrics.num_grown.tolist() == event.metrics.num_restarted.tolist() == [4]


def test_a_block_that_was_active_in_part_starts_at_0_where_it_was_not():
    params = {"kernel": jnp.ones((2, 4))}
    method = jaxsparse.with_pattern(
        jaxsparse.gmp(sparsity=0.5, total_steps=2, update_interval=1), jaxsparse.block((2, 2))
    )
    event = method.update(params, params, {"kernel": jnp.zeros((2, 4), bool).at[1, 3].set(True)}, 2)
    assert picture(event.masks["kernel"]) == ["0011", "0011"]
    assert picture(event.kept["kernel"]) == ["0000", "0001"]


def test_global_pruning_of_blocks_ranks_them_over_all_leaves():
    params = {
        "a": {"kernel": jnp.array([[1.0, 1, 5, 5], [1, 1, 5, 5]])},
        "b": {"kernel": jnp.array([[0.1, 30, 2, 2], [0.1, 0, 2, 2]])},
    }
    method = jaxsparse.with_pattern(
        jaxsparse.gmp(sparsity=0.5, total_steps=2, update_interval=1), jaxsparse.block((2, 2))
    )
    event = method.update(params, params, jaxsparse.dense_masks(params), 2)
    assert picture(event.masks["a"]["kernel"]) == ["0011"] * 2
    assert picture(event.masks["b"]["kernel"]) == ["1100"] * 2
    plan = method.plan(params)
    assert plan.layers_are_estimates and plan.rows[-1].num_active == 8
    assert all(count % 4 == 0 for row in plan.rows for count in row.layers.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_initial_masks_of_n_of_m(name, key):
    tree = shapes_of(a=(3, 3, 8, 2), b=(12, 5))
    method = jaxsparse.with_pattern(METHODS[name](0.5), TWO_OF_FOUR)
    assert method.name == f"{name} 2:4"
    masks = method.init(key, drawn(0, tree))
    jaxsparse.check_pattern(masks, TWO_OF_FOUR)
    assert method.plan(tree).rows[0].layers == {"a/kernel": 72, "b/kernel": 30}
    assert not np.array_equal(masks["b"]["kernel"][:4], masks["b"]["kernel"][4:8])
    other = method.init(jax.random.key(1), drawn(0, tree))
    assert not np.array_equal(masks["b"]["kernel"], other["b"]["kernel"])


def test_all_masks_of_a_group_are_equally_likely(key):
    method = jaxsparse.with_pattern(METHODS["static"](0.5), jaxsparse.n_of_m(2, 4))
    masks = method.init(key, {"kernel": jnp.ones((4, 6000))})["kernel"]
    kinds, counts = np.unique(np.asarray(masks), axis=1, return_counts=True)
    assert kinds.shape[1] == 6
    assert (abs(counts - 1000) < 150).all()  # five standard deviations


def test_rigl_moves_entries_under_n_of_m(key):
    tree = shapes_of(a=(3, 3, 16, 8), b=(64, 10))
    method = jaxsparse.with_pattern(METHODS["rigl"](0.5), TWO_OF_FOUR)
    first = masks = method.init(key, drawn(0, tree))
    for step in (2, 4, 6):
        params = jaxsparse.apply_masks(drawn(step, tree), masks)
        event = method.update(params, drawn(step + 1, tree), masks, step)
        jaxsparse.check_pattern(event.masks, TWO_OF_FOUR)
        assert (event.metrics.num_grown > 0).all()
        assert event.metrics.num_active.tolist() == list(method.plan(tree).rows[0].layers.values())
        masks = event.masks
    changed = [
        float((a != b).mean()) for a, b in zip(*map(jax.tree.leaves, (first, masks)), strict=True)
    ]
    assert min(changed) > 0.1
    # Not within one place of the group only: every group position gains and loses.
    assert (first["b"]["kernel"] != masks["b"]["kernel"]).reshape(16, 4, 10).any((0, 2)).all()


def test_rules_leave_the_other_leaves_to_the_method(key):
    tree = shapes_of(conv1=(3, 3, 3, 8), conv2=(3, 3, 8, 8), fc=(16, 10), head=(10, 7))
    rules = [("^conv1/", None), ("fc/", jaxsparse.channels()), ("conv", TWO_OF_FOUR)]
    method = jaxsparse.with_pattern(
        jaxsparse.rigl(sparsity=0.8, distribution=jaxsparse.uniform(), **RUN), rules
    )
    assert method.name == "rigl channels+2:4"
    masks = method.init(key, drawn(0, tree))
    jaxsparse.check_pattern(masks, rules)
    # 216 + 10 channels + 70 = 296 units at .2: 296 - floor(236.8) = 60 = 43 + 2 + 14, and one more
    # for the first leaf that is furthest below its share (43.2).
    layers = method.plan(tree).rows[0].layers
    assert layers == {"conv1/kernel": 44, "conv2/kernel": 288, "fc/kernel": 32, "head/kernel": 14}
    active = {p: int(m["kernel"].sum()) for p, m in masks.items()}
    assert list(active.values()) == list(layers.values())
    event = method.update(drawn(0, tree), drawn(1, tree), masks, 2)
    jaxsparse.check_pattern(event.masks, rules)
    assert event.metrics.num_active.tolist() == list(layers.values())


def test_what_a_method_was_given_survives(key):
    snfs = jaxsparse.snfs(sparsity=0.5, **RUN)._replace(skip_step=False)
    method = jaxsparse.with_pattern(snfs, TWO_OF_FOUR)
    fields = ("timetable", "observe", "skip_step", "prunable", "dense_gradient")
    assert [getattr(method, f) for f in fields] == [getattr(snfs, f) for f in fields]
    assert method.dense_gradient == "always" and isinstance(hash(method), int)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, jaxsparse.block((4, 2)), jaxsparse.channels(-2)])
def test_many_networks_at_once(pattern, dtype, key):
    tree = shapes_of(a=(3, 3, 8, 4), b=(16, 6))
    method = jaxsparse.with_pattern(METHODS["rigl_itop"](0.5), pattern)
    params = [drawn(seed, tree, dtype) for seed in (0, 1)]
    grads = [drawn(seed, tree, dtype) for seed in (2, 3)]
    masks = [method.init(jax.random.key(seed), params[0]) for seed in (0, 1)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    events = jax.vmap(lambda p, g, m: method.update(p, g, m, 2))(
        *map(stack, (params, grads, masks))
    )
    for i in range(2):
        alone = method.update(params[i], grads[i], masks[i], 2)
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], events), alone)
        jaxsparse.check_pattern(alone.masks, pattern)


@pytest.mark.parametrize("seed", range(2))
def test_a_mixed_tree_equals_each_leaf_alone(seed):
    tree = shapes_of(a=(3, 3, 8, 8), b=(16, 8), c=(12, 9), d=(8, 8))
    rules = {"a": TWO_OF_FOUR, "b": jaxsparse.block((4, 2)), "c": jaxsparse.n_of_m(2, 3, axis=-1)}
    with_rules = lambda rules, sparsity: jaxsparse.with_pattern(
        jaxsparse.rigl_itop(sparsity=sparsity, total_steps=20, update_interval=2), rules
    )
    method = with_rules(list(rules.items()), 0.5)
    masks = method.init(jax.random.key(seed), tree)
    params = jaxsparse.apply_masks(drawn(seed, tree), masks)
    grads = drawn(seed + 9, tree)
    event = method.update(params, grads, masks, 2)
    for i, path in enumerate(tree):
        alone = with_rules([("", rules.get(path))], 1 / 3 if path == "c" else 0.5)
        expected = alone.update(*({path: x[path]} for x in (params, grads, masks)), 2)
        chex.assert_trees_all_equal(event.masks[path], expected.masks[path])
        chex.assert_trees_all_equal(event.kept[path], expected.kept[path])
        assert int(event.metrics.num_grown[i]) == int(expected.metrics.num_grown[0]) > 0


def test_min_keep_counts_weights():
    params = {"a": {"kernel": jnp.full((4, 4), 0.1)}, "b": {"kernel": jnp.full((4, 8), 9.0)}}
    method = jaxsparse.with_pattern(
        jaxsparse.gmp(sparsity=0.5, min_keep=5, total_steps=2, update_interval=1),
        jaxsparse.block((2, 2)),
    )
    event = method.update(params, params, jaxsparse.dense_masks(params), 2)
    assert event.metrics.num_active.tolist() == [8, 16]  # two blocks, the fewest with 5 weights
