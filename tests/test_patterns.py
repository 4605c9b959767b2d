"""N:M, blocks and channels: known answers, an oracle in NumPy, refused combinations, validity."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse.pattern_rules import groups_of
from jaxsparse.stages import exchange
from jaxsparse.types import Groups, KernelAxes, Row
from jaxsparse.units import from_units, pool, to_units

NAN, INF = np.nan, np.inf
HALF = (jnp.int32(1), jnp.int32(2))
TWO_OF_FOUR = jaxsparse.n_of_m(2, 4)
RUN = {"total_steps": 10, "update_interval": 2}
METHODS = {
    "static": lambda sparsity: jaxsparse.static(sparsity=sparsity, total_steps=10),
    "rigl": lambda sparsity: jaxsparse.rigl(sparsity=sparsity, **RUN),
    "set": lambda sparsity: jaxsparse.set_(sparsity=sparsity, **RUN),
    "snfs": lambda sparsity: jaxsparse.snfs(sparsity=sparsity, **RUN),
    "rigl_itop": lambda sparsity: jaxsparse.rigl_itop(sparsity=sparsity, **RUN),
    "set_itop": lambda sparsity: jaxsparse.set_itop(sparsity=sparsity, **RUN),
}


def shapes_of(**leaves):
    return {
        path: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for path, shape in leaves.items()
    }


def drawn(seed, tree, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), tree)


def picture(mask):
    """Rows of a matrix as strings of 0 and 1."""
    return ["".join("01"[int(bit)] for bit in row) for row in np.asarray(mask)]


# The groups


@pytest.mark.parametrize(
    ("pattern", "shape", "split", "axes"),
    [
        (jaxsparse.n_of_m(2, 4), (8, 3), (2, 4, 3), (1,)),
        (jaxsparse.n_of_m(1, 3, axis=0), (6, 5, 2), (2, 3, 5, 2), (1,)),
        (jaxsparse.n_of_m(3, 4, axis=-1), (8,), (2, 4), (1,)),
        (jaxsparse.block((4, 2)), (8, 6), (2, 4, 3, 2), (1, 3)),
        (jaxsparse.block((6, 1)), (3, 3, 2, 5), (3, 6, 5, 1), (1, 3)),  # taps of one filter row
        (jaxsparse.channels(), (3, 3, 2, 5), (3, 3, 2, 5), (0, 1, 2)),
        (jaxsparse.channels(-2), (2, 5), (2, 5), (1,)),
    ],
)
def test_how_leaves_are_cut(pattern, shape, split, axes):
    groups = pattern.cut(shape)
    assert (groups.split, groups.axes) == (split, axes)


# The kernels of attention, and other leaves whose inputs and outputs are elsewhere.
@pytest.mark.parametrize(
    ("pattern", "path", "shape", "split", "axes"),
    [
        (TWO_OF_FOUR, "q/kernel", (768, 12, 64), (192, 4, 12, 64), (1,)),
        (TWO_OF_FOUR, "out/kernel", (12, 64, 768), (192, 4, 768), (1,)),
        (TWO_OF_FOUR, "out/kernel", (2, 6, 8), (3, 4, 8), (1,)),  # 6 alone is no multiple
        (TWO_OF_FOUR, "q/kernel", (3, 16, 2, 8), (3, 4, 4, 2, 8), (2,)),  # a stack
        (TWO_OF_FOUR, "DenseGeneral_0/kernel", (16, 2, 32), (4, 4, 2, 32), (1,)),
        (TWO_OF_FOUR, "fc/weight", (5, 8), (5, 2, 4), (2,)),
        (TWO_OF_FOUR, "conv/weight", (5, 8, 3, 3), (5, 2, 4, 3, 3), (2,)),
        (jaxsparse.n_of_m(2, 4, axis=-2), "q/kernel", (768, 12, 64), (768, 3, 4, 64), (2,)),
        (jaxsparse.block((4, 2)), "q/kernel", (16, 2, 8), (4, 4, 8, 2), (1, 3)),
        (jaxsparse.block((4, 2)), "out/kernel", (2, 8, 16), (4, 4, 8, 2), (1, 3)),
        (jaxsparse.block((4, 2)), "conv/weight", (6, 4, 3, 3), (3, 2, 9, 4), (1, 3)),
        (jaxsparse.channels(), "q/kernel", (16, 2, 8), (16, 2, 8), (0,)),
        (jaxsparse.channels(), "out/kernel", (2, 8, 16), (2, 8, 16), (0, 1)),
        (jaxsparse.channels("inputs"), "q/kernel", (16, 2, 8), (16, 2, 8), (1, 2)),
        (jaxsparse.channels("inputs"), "out/kernel", (2, 8, 16), (2, 8, 16), (2,)),
        (jaxsparse.channels("inputs"), "conv/kernel", (3, 3, 2, 5), (3, 3, 2, 5), (0, 1, 3)),
        (jaxsparse.channels(), "conv/weight", (6, 4, 3, 3), (6, 4, 3, 3), (1, 2, 3)),
        (jaxsparse.channels(-1), "q/kernel", (16, 2, 8), (16, 2, 8), (0, 1)),
    ],
)
def test_groups_follow_the_axes_of_a_leaf(pattern, path, shape, split, axes):
    groups = groups_of([("", pattern)], {path: shape})[path]
    assert (groups.split, groups.axes) == (split, axes)


def as_rows(x, axes):
    """A leaf as the matrices that it is: [everything but inputs, inputs], NumPy."""
    order = (*axes.batch, *axes.outputs, *axes.window, *axes.inputs)
    return np.transpose(x, order).reshape(-1, np.prod([x.shape[axis] for axis in axes.inputs]))


@pytest.mark.parametrize(
    "given",
    [
        ((0,), (1, 2), (), (3,)),
        ((1, 2), (0,), (3,), ()),
        ((0, 2), (1, 3), (), ()),
        ((3,), (0,), (1,), (2,)),
        ((1, 2, 3), (), (), (0,)),
    ],
)
def test_given_axes_go_before_the_rules(given):
    given = KernelAxes(*given)
    params = drawn(0, {"kernel": jax.ShapeDtypeStruct((4, 4, 4, 4), jnp.float32)})
    axes = {"kernel": given}
    masks = jaxsparse.pattern_masks(params, jaxsparse.n_of_m(2, 4, axes=axes))
    weights, kept = (as_rows(np.abs(x["kernel"]), given).reshape(-1, 4) for x in (params, masks))
    assert (kept.sum(1) == 2).all()
    assert (np.where(kept, weights, np.inf).min(1) > np.where(kept, -np.inf, weights).max(1)).all()
    if given.outputs:
        summed = given._replace(inputs=tuple(sorted((*given.inputs, *given.window))), window=())
        masks = jaxsparse.pattern_masks(params, jaxsparse.channels(axes=axes), sparsity=0.5)
        assert {*as_rows(np.asarray(masks["kernel"]), summed).mean(1)} == {0, 1}
        pairs = jaxsparse.block((2, 1), axes=axes)
        masks = jaxsparse.pattern_masks(params, pairs, sparsity=0.5)
        assert {*as_rows(np.asarray(masks["kernel"]), summed).reshape(-1, 2).sum(1)} == {0, 2}
        jaxsparse.check_pattern(masks, pairs)


def test_axes_that_do_not_go_with_a_pattern():
    shapes = {"kernel": (8, 16)}
    with pytest.raises(
        ValueError, match="leaf kernel .*: axes at kernel .* each of its 2 axes once"
    ):
        groups_of([("", jaxsparse.n_of_m(2, 4, axes={"kernel": KernelAxes((0,), (0,))}))], shapes)
    none = {"kernel": KernelAxes((), (0, 1))}
    with pytest.raises(ValueError, match="leaf kernel .*: it has no axis of inputs"):
        groups_of([("", jaxsparse.n_of_m(2, 4, axes=none))], shapes)
    with pytest.raises(ValueError, match="leaf kernel .*: it has no axis of inputs"):
        groups_of([("", jaxsparse.channels("inputs", axes=none))], shapes)
    with pytest.raises(
        ValueError, match="leaf out/kernel .*: its size 6 along axis -3, -2 is no mu"
    ):
        groups_of([("", TWO_OF_FOUR)], {"out/kernel": (2, 3, 8)})


def test_a_cut_of_ones_own_sees_the_shape():
    mine = jaxsparse.Pattern("mine", lambda shape: Groups("mine", shape, (0,)))
    assert groups_of([("", mine)], {"q/kernel": (8, 2, 4)})["q/kernel"].axes == (0,)


def test_rows_of_a_convolution_go_by_input_channel_then_width_then_height():
    kernel = jnp.arange(2 * 2 * 2 * 2, dtype=jnp.float32).reshape(2, 2, 2, 2)  # h, w, in, out
    groups = jaxsparse.block((4, 1)).cut(kernel.shape)
    want = [[kernel[h, :, :, out].sum() for out in range(2)] for h in range(2)]
    np.testing.assert_array_equal(pool(kernel, groups), np.array(want))


def test_units_and_back():
    groups = {"a": jaxsparse.block((2, 2)).cut((2, 6)), "b": TWO_OF_FOUR.cut((4, 1))}
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1]], bool)
    masks = {"a": jnp.asarray(mask), "b": jnp.ones((4, 1), bool), "c": jnp.zeros(3, bool)}
    units = to_units(masks, groups)
    assert picture(units["a"]) == ["101"]
    entries = from_units(units, groups, masks)
    assert picture(entries["a"]) == ["110011", "110011"]
    chex.assert_trees_all_equal((entries["b"], entries["c"]), (masks["b"], masks["c"]))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 17, 64, 65, 300])
def test_pooling_adds_every_entry_once(n):
    x = jnp.asarray(np.random.default_rng(n).integers(-99, 99, (n, 3)), jnp.float32)
    for axes, split in (((0,), (n, 3)), ((0, 2), (n, 3, 1)), ((0, 1), (n, 3))):
        pooled = pool(x, Groups("", split, axes))
        np.testing.assert_array_equal(pooled, np.asarray(x).reshape(split).sum(axes))


def test_pooling_is_in_float32_and_keeps_nan():
    groups = jaxsparse.channels().cut((300, 2))
    ones = jnp.ones((300, 2), jnp.bfloat16).at[3, 1].set(NAN)
    pooled = pool(ones, groups)
    assert pooled.dtype == jnp.float32
    assert pooled[0] == 300 and jnp.isnan(pooled[1])


# Events by hand


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
    w = [[NAN, 1, 0, 0], [2, NAN, 0, 0]]
    after, num_nan = run(
        exchange(rounding="floor"),
        w,
        [[1, 2, NAN, 3]] * 2,
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


# Every method


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


# One shot


def test_pattern_masks_by_magnitude():
    params = {"kernel": jnp.array([[1.0, -4, 3, 2], [0, 1, 0, 0]]), "bias": jnp.zeros(4)}
    masks = jaxsparse.pattern_masks(params, jaxsparse.n_of_m(1, 2, axis=-1))
    assert picture(masks["kernel"]) == ["0110", "01" + picture(masks["kernel"])[1][2:]]
    assert masks["bias"].all()
    masks = jaxsparse.pattern_masks(params, jaxsparse.channels(), sparsity=0.5)
    assert picture(masks["kernel"]) == ["0110", "0110"]
    rules = [("^a$", TWO_OF_FOUR)]
    params = {"a": jnp.arange(8.0).reshape(4, 2), "b": jnp.arange(8.0).reshape(4, 2)}
    all_leaves = (("", True),)
    masks = jaxsparse.pattern_masks(params, rules, sparsity=0.75, prunable=all_leaves)
    assert picture(masks["a"].T) == ["0011"] * 2 and picture(masks["b"].T) == ["0001"] * 2
    with pytest.raises(ValueError, match="leaf b has no N:M pattern, so its sparsity= must be giv"):
        jaxsparse.pattern_masks(params, rules, prunable=all_leaves)


# Validity


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        (
            TWO_OF_FOUR,
            (4, 1),
            r"masks at b/kernel: the group of 4 that starts at \(4, 1\) has 3 active entries; 2:4 "
            r"allows 2 \(1 of 4 groups is bad\)",
        ),
        (
            jaxsparse.block((2, 2)),
            (2, 0),
            r"masks at b/kernel: the group of 4 that starts at \(2, 0\) has 1 active entries; 2x2 "
            r"allows 0 or 4 \(1 of 4",
        ),
        (
            jaxsparse.channels(),
            (0, 1),
            r"starts at \(0, 1\) has 1 active entries; channels allows 0 or 8",
        ),
    ],
)
def test_check_pattern_names_the_first_bad_group(pattern, change, message, key):
    tree = shapes_of(a=(8, 2), b=(8, 2))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), tree)
    if pattern is TWO_OF_FOUR:
        rising = jax.tree.map(lambda x: jnp.arange(16.0).reshape(x.shape), tree)
        zeros = jaxsparse.pattern_masks(rising, pattern)  # the first two of four are free
    jaxsparse.check_pattern(zeros, pattern)
    zeros["b"]["kernel"] = zeros["b"]["kernel"].at[change].set(True)
    with pytest.raises(ValueError, match=message):
        jaxsparse.check_pattern(zeros, pattern)


def test_check_pattern_takes_masks_only():
    with pytest.raises(ValueError, match="masks at kernel has dtype float32; it must be bool"):
        jaxsparse.check_pattern({"kernel": jnp.ones((4, 4))}, TWO_OF_FOUR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxsparse.n_of_m(4, 4), r"n_of_m\(4, 4\): n must be at least 1 and below m"),
        (lambda: jaxsparse.n_of_m(0, 4), "n_of_m: 0 must be a whole number, at least 1"),
        (lambda: jaxsparse.block((4, 0)), "block: 0 must be a whole number, at least 1"),
        (lambda: jaxsparse.block((4, 4), 2), r"block: \(4, 4\) must be a whole number"),
        (lambda: jaxsparse.block(4), r"block 4 must be \(rows, columns\)"),
        (lambda: jaxsparse.channels("out"), "channels: axis 'out' must be a whole number"),
        (lambda: jaxsparse.channels(True), "channels: axis True must be a whole number"),
        (lambda: jaxsparse.n_of_m(2, 4, axis=1.0), "n_of_m: axis 1.0 must be a whole number"),
        (lambda: jaxsparse.n_of_m(2, 4, axis="in"), "n_of_m: axis 'in' must be a whole number"),
        (lambda: jaxsparse.block(4, 4, axes={"a": (0, 1)}), "axes at a: .* must be KernelAxes"),
        (lambda: jaxsparse.n_of_m(np.True_, 4), "n_of_m: (np.)?True_? must be a whole number"),
    ],
)
def test_patterns_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_from_numpy():
    assert jaxsparse.n_of_m(np.int64(2), np.int32(4), axis=np.int64(-2)).name == "2:4"
    assert jaxsparse.block(np.array([4, 2])).name == "4x2"
    assert jaxsparse.block(4, 2).cut((8, 6)) == jaxsparse.block((4, 2)).cut((8, 6))
    assert jaxsparse.channels(np.int64(-1)).name == "channels"


def test_another_axis_is_in_the_name():
    rules = [("a", jaxsparse.n_of_m(2, 4, axis=-1)), ("b", TWO_OF_FOUR)]
    assert jaxsparse.with_pattern(METHODS["rigl"](0.5), rules).name == "rigl 2:4(-1)+2:4"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            Groups("", (3, 5), (1,)),
            r"pattern 'mine' does not fit leaf kernel \(8, 4\): split \(3, 5\)",
        ),
        (Groups("", (8, 4), (2,)), r"axes \(2,\) must be axes of split \(8, 4\), rising"),
        (Groups("", (8, 4), (1, 0)), r"axes \(1, 0\) must be axes of split \(8, 4\), rising"),
        (
            Groups("", (4, 2, 2, 2), (1, 3), 2),
            r"2 of 4 active along axes \(1, 3\); one axis with 0",
        ),
        (
            Groups("", (2, 4, 4), (1,), 4),
            r"4 of 4 active along axes \(1,\); one axis with 0 < n < m",
        ),
        ("2:4", "its cut is '2:4', which must be jaxsparse.types.Groups"),
    ],
)
def test_what_a_cut_of_ones_own_returns_is_checked(groups, message):
    pattern = jaxsparse.Pattern("mine", lambda shape: groups)
    with pytest.raises(ValueError, match=message):
        jaxsparse.pattern_masks({"kernel": jnp.ones((8, 4))}, pattern, sparsity=0.5)


@pytest.mark.parametrize(
    ("make", "pattern", "message"),
    [
        (jaxsparse.rigl, "2:4", "pattern '2:4' must be a pattern such as n_of_m"),
        (jaxsparse.rigl, [("a", "2:4")], "must be a pattern such as n_of_m"),
        (jaxsparse.rigl, [], "must be a pattern such as n_of_m"),
    ],
)
def test_combinations_that_are_refused(make, pattern, message):
    with pytest.raises(ValueError, match=message):
        jaxsparse.with_pattern(make(sparsity=0.75, **RUN), pattern)


def test_methods_that_take_no_pattern():
    with pytest.raises(ValueError, match="method <function rigl .* must be a method such as rigl"):
        jaxsparse.with_pattern(jaxsparse.rigl, TWO_OF_FOUR)
    by_hand = METHODS["rigl"](0.5)._replace(recipe=None)
    with pytest.raises(ValueError, match="method rigl must be one that compose made"):
        jaxsparse.with_pattern(by_hand, TWO_OF_FOUR)
    once = jaxsparse.with_pattern(METHODS["rigl"](0.5), TWO_OF_FOUR)
    with pytest.raises(ValueError, match="method rigl 2:4 has a pattern already"):
        jaxsparse.with_pattern(once, jaxsparse.channels())


LEAVES = {"conv1": (3, 3, 3, 8), "fc": (16, 10)}


@pytest.mark.parametrize(
    ("method", "pattern", "message"),
    [
        (
            METHODS["rigl"](0.5),
            TWO_OF_FOUR,
            r"pattern '2:4' does not fit leaf conv1/kernel \(3, 3, 3, 8\): its size 3 along axis "
            r"-2 is no multiple of 4; a rule \('conv1/kernel', None\) before it exempts the leaf",
        ),
        (
            METHODS["rigl"](0.5),
            jaxsparse.block((9, 4)),
            r"pattern '9x4' does not fit leaf fc/kernel \(16, 10\): blocks do not divide its 16 ",
        ),
        (METHODS["rigl"](0.5), jaxsparse.n_of_m(1, 3, axis=2), "leaf fc/kernel .* no axis 2"),
        (
            METHODS["rigl"](0.5),
            [("head", TWO_OF_FOUR)],
            "pattern rule 'head' is the first match of ",
        ),
        (
            jaxsparse.gmp(sparsity=0.75, **RUN),
            [("fc", TWO_OF_FOUR)],
            "leaf fc/kernel is 2:4, which fixes its sparsity, and the method changes the sparsity",
        ),
        (
            jaxsparse.granet_st(sparsity=0.75, **RUN),
            [("fc", jaxsparse.Pattern("mine", TWO_OF_FOUR.cut))],
            "leaf fc/kernel is 2:4, which fixes its sparsity, and the method changes the sparsity",
        ),
        (
            jaxsparse.dense(total_steps=10),
            [("fc", TWO_OF_FOUR)],
            "leaf fc/kernel is 2:4, but the method has sparsity 0; take one with a sparsity",
        ),
        (
            METHODS["rigl"](0.75),
            jaxsparse.n_of_m(1, 2, axis=-1),
            r"sparsity 0.75 is not possible: every prunable leaf is 1:2\(-1\), which is sparsity 0",
        ),
        (
            jaxsparse.gmp(sparsity=0.5, **RUN),
            jaxsparse.channels(),
            "scope 'global' needs groups of one size, but those of conv1/kernel have 27 entries "
            "and those of fc/kernel 16; take scope='layer'",
        ),
        (
            jaxsparse.gmp(sparsity=0.5, scope="layer", min_keep=2, **RUN),
            jaxsparse.channels(),
            "min_keep 2 needs groups of one size, .* leave min_keep out",
        ),
        (
            METHODS["rigl"](0.95),
            jaxsparse.channels(),
            r"leaves 1 active weights for 2 layers.* \(a weight is here one group: channels of 27 "
            r"entries, channels of 16 entries\)",
        ),
    ],
)
def test_leaves_that_do_not_go_with_the_pattern(method, pattern, message, key):
    tree = shapes_of(**LEAVES)
    patterned = jaxsparse.with_pattern(method, pattern)
    with pytest.raises(ValueError, match=message):
        patterned.plan(tree)
    said_early = ("fc/kernel is 2:4", "groups of one size")
    if method.timetable.initial_density < 1 or any(part in message for part in said_early):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(patterned.init, key, tree)


def test_min_keep_counts_weights():
    params = {"a": {"kernel": jnp.full((4, 4), 0.1)}, "b": {"kernel": jnp.full((4, 8), 9.0)}}
    method = jaxsparse.with_pattern(
        jaxsparse.gmp(sparsity=0.5, min_keep=5, total_steps=2, update_interval=1),
        jaxsparse.block((2, 2)),
    )
    event = method.update(params, params, jaxsparse.dense_masks(params), 2)
    assert event.metrics.num_active.tolist() == [8, 16]  # two blocks, the fewest with 5 weights


def test_groups_follow_the_first_rule():
    shapes = {"conv1": (4, 4), "conv2": (4, 4), "fc": (4, 4)}
    rules = (("conv1", None), ("conv", TWO_OF_FOUR))
    assert {p: g.pattern for p, g in groups_of(rules, shapes).items()} == {"conv2": "2:4"}
