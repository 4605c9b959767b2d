"""Each algorithm against its formula in NumPy: targets, what an event keeps, exact counts."""

import math

import jax
import numpy as np
import pytest

import jaxsparse
from jaxsparse.compat.config import read_config
from jaxsparse.compat.methods import make_method, prunable_rules
from tests.trees import fill, shape

TREE = {
    "conv": {"kernel": shape(3, 3, 2, 4), "bias": shape(4)},
    "table": {"embedding": shape(8, 4)},
    "fc": {"kernel": shape(16, 8), "bias": shape(8)},
}
SIZES = {"conv/kernel": 72, "fc/kernel": 128, "table/embedding": 32}
BASE = {
    "dist_type": "uniform",
    "sparsity": 0.75,
    "update_freq": 10,
    "update_start_step": 20,
    "update_end_step": 65,
}


def method_of(tree=TREE, **config):
    config = read_config(BASE | config)
    return make_method(config, prunable_rules(config, tree))


def counts(plan):
    return {row.step: row.layers for row in plan.rows}


def test_leaves_of_two_axes_are_pruned_embeddings_too():
    assert list(method_of(algorithm="static_sparse").plan(TREE).sizes) == list(SIZES)
    kernels = method_of(algorithm="static_sparse", filter_fn=lambda key, x: key[-1] == "kernel")
    assert list(kernels.plan(TREE).sizes) == ["conv/kernel", "fc/kernel"]


def test_a_filter_sees_keys_and_leaf():
    seen = {}
    method_of(algorithm="set", filter_fn=lambda key, x: seen.update({key: x.shape}) or True)
    assert seen[("conv", "kernel")] == (3, 3, 2, 4) and seen[("fc", "bias")] == (8,)
    assert len(seen) == 5


def test_pruning_follows_the_cubic_in_calls_and_arrives():
    # Call c is step c + 1. s (1 - (1 - p)^3), p = (c + 1 - 20) / 45; the last has all of s.
    plan = method_of(algorithm="magnitude").plan(TREE)
    assert [row.step for row in plan.rows] == [0, 21, 31, 41, 51, 61]
    for step, layers in counts(plan).items():
        p = min(max(step - 20, 0) / 45, 1)
        s = 0.75 if step == 61 else 0.75 * (1 - (1 - p) ** 3)
        assert sum(layers.values()) == 232 - math.floor(232 * s + 1e-6)
        assert all(abs(n - SIZES[path] * (1 - s)) < 1 for path, n in layers.items())


def test_erk_shares_out_the_final_sparsity_and_every_leaf_goes_there_in_proportion():
    plan = method_of(algorithm="magnitude", dist_type="erk").plan(TREE)
    end = jaxsparse.erk()({path: leaf_shape(path) for path in SIZES}, 0.25)
    for step, layers in counts(plan).items():
        share = 1 - plan.rows[[row.step for row in plan.rows].index(step)].density
        for path, n in layers.items():
            expected = SIZES[path] * (1 - (1 - end[path]) * share / 0.75)
            assert abs(n - expected) < 1.5


def leaf_shape(path):
    layer, name = path.split("/")
    return TREE[layer][name].shape


def test_own_sparsities():
    own = {("fc", "kernel"): 0.5, ("conv", "bias"): 0.25}
    plan = method_of(algorithm="magnitude", custom_sparsity_map=own).plan(TREE)
    end = {"conv/bias": 3, "conv/kernel": 18, "fc/kernel": 64, "table/embedding": 8}
    assert counts(plan)[61] == end
    assert counts(plan)[0] == {"conv/bias": 4, **SIZES}
    dense = method_of(algorithm="global_magnitude", custom_sparsity_map={"fc/kernel": 0.0})
    assert list(dense.plan(TREE).sizes) == ["conv/kernel", "table/embedding"]


def by_path(tree):
    """The prunable leaves as NumPy arrays."""
    leaves = jaxsparse.paths.leaves_by_path(tree)
    return {path: np.asarray(leaves[path]) for path in SIZES}


def two_events(algorithm, key, **config):
    """Weights and gradients by path, and the masks after each of the last two updates."""
    method = method_of(algorithm=algorithm, **config)
    params, grads = fill(TREE, 0), fill(TREE, 1)
    masks = method.init(key, params)
    seen = [by_path(masks)]
    for step in (51, 61):
        params = jaxsparse.apply_masks(params, masks)
        masks = method.update(params, grads, masks, step, key=key).masks
        seen.append(by_path(masks))
    return by_path(params), by_path(grads), seen


def assert_best(worth, new, old):
    """What stays is worth more than what goes."""
    assert worth[new].min() > worth[old & ~new].max()
    assert not (new & ~old).any()


@pytest.mark.parametrize("algorithm", ["magnitude", "saliency"])
def test_pruning_in_every_leaf(algorithm, key):
    params, grads, (start, old, new) = two_events(algorithm, key)
    assert all(mask.all() for mask in start.values())
    for path, size in SIZES.items():
        worth = np.abs(params[path] * grads[path] if algorithm == "saliency" else params[path])
        assert new[path].sum() == size // 4
        assert_best(worth, new[path], old[path])


@pytest.mark.parametrize(
    ("algorithm", "normalized"), [("magnitude", True), ("magnitude", False), ("saliency", True)]
)
def test_pruning_over_all_leaves(algorithm, normalized, key):
    params, grads, (_, old, new) = two_events(
        f"global_{algorithm}", key, use_normalization=normalized, dist_type=None
    )
    worth = {}
    for path in SIZES:
        x = np.abs(params[path] * grads[path] if algorithm == "saliency" else params[path])
        worth[path] = x / (np.linalg.norm(x) + 1e-8) if normalized else x
    together = [np.concatenate([x[path].ravel() for path in SIZES]) for x in (worth, new, old)]
    assert together[1].sum() == 58
    assert_best(*together)


def test_pruning_at_random(key):
    _, _, (_, old, new) = two_events("random", key)
    for path, size in SIZES.items():
        assert new[path].sum() == size // 4 and not (new[path] & ~old[path]).any()
    _, _, (_, _, other) = two_events("random", jax.random.key(7))
    assert any((other[path] != new[path]).any() for path in SIZES)


def test_rigl_drops_the_smallest_and_grows_by_gradient(key):
    method = method_of(algorithm="rigl", drop_fraction=0.4)
    params, grads = fill(TREE, 0), fill(TREE, 1)
    masks = method.init(key, params)
    params = jaxsparse.apply_masks(params, masks)
    event = method.update(params, grads, masks, 31)  # call 30 of a cosine to 0 at call 65
    fraction = 0.4 * (1 + math.cos(math.pi * 30 / 65)) / 2
    old, new, kept = (by_path(tree) for tree in (masks, event.masks, event.kept))
    for path, size in SIZES.items():
        w, g = np.abs(by_path(params)[path]), np.abs(by_path(grads)[path])
        n = math.floor(fraction * (size // 4))
        stayed = old[path] & (w >= np.sort(w[old[path]])[n])
        grown = ~stayed & (g >= np.sort(g[~stayed])[-n])
        np.testing.assert_array_equal(new[path], stayed | grown)
        np.testing.assert_array_equal(kept[path], old[path] & new[path])


def test_set_grows_at_random_and_the_last_call_changes_nothing(key):
    method = method_of(algorithm="set", drop_fraction=0.4, update_end_step=60)
    assert [event.step for event in method.timetable.events] == [21, 31, 41, 51]
    params = fill(TREE, 0)
    masks = method.init(key, params)
    one, other = (method.update(params, params, masks, 31, key=k) for k in (key, jax.random.key(1)))
    for path, size in SIZES.items():
        assert by_path(one.masks)[path].sum() == size // 4
    assert int(one.metrics.num_grown.sum()) > 0
    assert any((by_path(one.masks)[p] != by_path(other.masks)[p]).any() for p in SIZES)


def test_static_and_dense(key):
    params = fill(TREE, 0)
    masks = by_path(method_of(algorithm="static_sparse").init(key, params))
    assert all(mask.sum() == SIZES[path] // 4 for path, mask in masks.items())
    assert method_of(algorithm="static_sparse").timetable.events == ()
    assert all(x.all() for x in jax.tree.leaves(method_of(algorithm="no_prune").init(key, params)))


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("magnitude", "nm_1,4"),
        ("rigl", "nm_1,4"),
        ("static_sparse", "nm_1,4"),
        ("magnitude", "block_2,2"),
        ("set", "block_2,2"),
        ("random", "channel_-1"),
    ],
)
def test_sparsity_types(algorithm, kind, key):
    tree = {"kernel": shape(8, 8)}
    method = method_of(tree, algorithm=algorithm, sparsity_type=kind)
    params = fill(tree, 0)
    masks = method.init(key, params)
    for event in method.timetable.events:
        masks = method.update(params, fill(tree, 1), masks, event.step, key=key).masks
        params = jaxsparse.apply_masks(params, masks)
    pattern = {"nm_1,4": jaxsparse.n_of_m(1, 4, axis=-1), "block_2,2": jaxsparse.block(2, 2)}
    jaxsparse.check_pattern(masks, pattern.get(kind, jaxsparse.channels()))
    assert int(masks["kernel"].sum()) == 16
    if kind == "nm_1,4" and algorithm == "magnitude":  # from dense to the best of every group
        best = np.abs(fill(tree, 0)["kernel"]).reshape(8, 2, 4)
        expected = best == best.max(-1, keepdims=True)
        np.testing.assert_array_equal(masks["kernel"], expected.reshape(8, 8))


def test_n_of_m_has_its_own_sparsity():
    # jaxpruner's notebook asks for 90 % beside 1:4; the pattern decides.
    method = method_of(
        {"kernel": shape(8, 8)}, algorithm="rigl", sparsity=0.9, sparsity_type="nm_1,4"
    )
    assert method.plan({"kernel": shape(8, 8)}).rows[-1].num_active == 16
