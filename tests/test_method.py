"""compose: initial masks, events and what survives them, wrong input, equal methods."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import jaxsparse
from jaxsparse.distributions import uniform, with_overrides
from jaxsparse.scores import random
from jaxsparse.selection.top_k import top_k
from jaxsparse.stages import exchange, prune
from jaxsparse.timetable import make_timetable
from jaxsparse.types import Selected

ALL = ((r".", True),)


def halved(step):
    return 0.5


def one_event(stages, *, density=halved, **options):
    """A method whose only event, at step 1, prunes to half and exchanges half."""
    table = make_timetable(total_steps=2, update_interval=1, density=density, drop_fraction=halved)
    return jaxsparse.compose("test", stages, table._replace(events=table.events[:1]), **options)


def counts(masks):
    return jax.tree.map(lambda mask: int(mask.sum()), masks)


# Cases of RigL's own tests.
@pytest.mark.parametrize(
    ("shape", "sparsity", "expected"),
    [((30, 4), 0.5, 60), ((1, 2, 1, 4), 0.8, 2), ((30,), 0.1, 27), ((4, 4), 0.0, 16)],
)
@pytest.mark.parametrize("seed", range(3))
def test_initial_masks_have_the_exact_count(shape, sparsity, expected, seed):
    method = jaxsparse.static(sparsity=sparsity, prunable=ALL, total_steps=10)
    masks = method.init(jax.random.key(seed), {"w": jnp.ones(shape)})
    assert masks["w"].shape == shape and masks["w"].dtype == bool
    assert counts(masks) == {"w": expected}


def test_initial_masks_depend_on_key_and_path_only(key):
    method = jaxsparse.static(sparsity=0.5, distribution=uniform(), total_steps=10)
    params = {
        "a": {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)},
        "b": {"kernel": jnp.ones((8, 8))},
    }
    masks = jax.jit(method.init)(key, params)
    chex.assert_trees_all_equal(masks, method.init(key, params))
    chex.assert_trees_all_equal(masks, method.init(key, jax.tree.map(lambda x: 3 * x, params)))
    assert counts(masks) == {"a": {"kernel": 32, "bias": 8}, "b": {"kernel": 32}}
    assert (masks["a"]["kernel"] != masks["b"]["kernel"]).any()
    other = method.init(jax.random.key(1), params)
    assert (masks["a"]["kernel"] != other["a"]["kernel"]).any()


def test_overrides_hold_from_a_dense_start(key):
    params = {"a": jnp.ones(8), "b": jnp.ones(8)}
    distribution = with_overrides(uniform(), {"a": 0.75})
    method = one_event([prune()], distribution=distribution, scope="layer", prunable=ALL)
    assert counts(method.init(key, params)) == {"a": 2, "b": 8}
    assert method.plan(params).rows[0].layers == {"a": 2, "b": 8}
    assert method.plan(params).rows[-1].layers == {"a": 2, "b": 4}


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@pytest.mark.parametrize(
    "params",
    [
        freeze({"fc": {"kernel": jnp.ones((4, 4))}}),
        [Layer(jnp.ones((4, 4)), jnp.ones(4)), (Layer(jnp.ones((4, 2)), jnp.ones(2)),)],
        {"a[0].*+(": {"kernel": jnp.ones((4, 4), jnp.bfloat16)}},
        {"fc": {"kernel": jnp.ones((4, 4)), "bias": None}},
    ],
    ids=["FrozenDict", "list, tuple, NamedTuple", "regex characters", "None"],
)
def test_any_container(params, key):
    method = one_event([prune(), exchange(rounding="ceil")])
    masks = method.init(key, params)
    event = jax.jit(method.update)(params, params, masks, 1)
    chex.assert_trees_all_equal_structs(params, masks, event.masks, event.kept)
    assert event.metrics.num_active.sum() == jaxsparse.num_active(masks) // 2


def test_scalar_empty_and_one_weight_leaves(key):
    params = {
        "a": jnp.float32(2.0),
        "b": jnp.ones((0, 3)),
        "c": jnp.ones((1, 1)),
        "d": jnp.ones(10),
    }
    method = one_event(
        [prune(), exchange(grow=random, rounding="ceil")], scope="layer", prunable=ALL
    )
    event = jax.jit(method.update)(params, params, jaxsparse.dense_masks(params), 1, key=key)
    assert counts(event.masks) == {"a": 1, "b": 0, "c": 1, "d": 4}  # 12 - 6, one each for a and c
    assert int(event.metrics.num_empty) == 1
    empty = {"b": jnp.ones((0, 3))}
    rigl = jaxsparse.rigl(sparsity=0.5, total_steps=9, update_interval=1, prunable=ALL)
    assert counts(jax.jit(rigl.update)(empty, empty, rigl.init(key, empty), 1).masks) == {"b": 0}


def test_counts_and_metrics_of_a_long_list_of_layers(key):
    """JAX sorts the keys of dicts, and "10" before "2": no leaf may get another one's numbers."""
    params = [jnp.linspace(-1, 1, 4 * n).reshape(4, n) for n in range(1, 13)]
    params[2] = params[2].at[0, 0].set(jnp.nan)
    method = one_event(
        [prune(), exchange(rounding="ceil")],
        scope="layer",
        distribution=uniform(),
        prunable=ALL,
    )
    grads = jax.tree.map(jnp.ones_like, params)
    event = method.update(params, grads, jaxsparse.dense_masks(params), 1)
    want = list(method.plan(params).rows[1].layers.values())
    assert want == [2 * n for n in range(1, 13)]
    assert counts(event.masks) == event.metrics.num_active.tolist() == want
    assert (event.metrics.num_nan > 0).tolist() == [n == 3 for n in range(1, 13)]


def test_what_is_kept_and_what_is_counted():
    def first(weights, signal, masks, row, key):  # removes 0 and 1
        return Selected({"w": masks["w"].at[:2].set(False)}, jnp.ones(1, jnp.int32))

    def second(weights, signal, masks, row, key):  # brings 1 back, and 5, which was inactive
        return Selected(
            {"w": masks["w"].at[jnp.array([1, 5])].set(True)}, jnp.full(1, 2, jnp.int32)
        )

    params = {"w": jnp.ones(6), "bias": jnp.ones(2)}
    masks = {"w": jnp.array([True, True, True, True, False, False]), "bias": jnp.ones(2, bool)}
    method = one_event([first, second], prunable=(("w", True),))
    event = method.update(params, params, masks, 1)
    np.testing.assert_array_equal(event.masks["w"], np.array([0, 1, 1, 1, 0, 1], bool))
    np.testing.assert_array_equal(event.kept["w"], np.array([0, 0, 1, 1, 0, 0], bool))
    assert event.masks["bias"].all() and event.kept["bias"].all()
    assert jax.tree.map(lambda x: x.tolist(), event.metrics._asdict()) == {
        "num_active": [4],
        "num_dropped": [1],  # 0
        "num_grown": [1],  # 5
        "num_restarted": [2],  # 1 and 5
        "num_nan": [3],
        "num_left_out": 0,
    }


def test_metrics_count_nan_and_go_in_the_order_of_the_paths():
    params = {"a": jnp.array([jnp.nan, 1.0, 2.0, 3.0]), "b": jnp.array([0.1, 0.2])}
    method = one_event([prune()], scope="global", prunable=ALL)
    grads = jax.tree.map(jnp.ones_like, params)
    event = jax.jit(method.update)(params, grads, jaxsparse.dense_masks(params), 1)
    assert event.metrics.num_active.tolist() == [3, 0]
    assert event.metrics.num_dropped.tolist() == [1, 2]
    assert event.metrics.num_nan.tolist() == [1, 0]
    assert int(event.metrics.num_empty) == 1


def test_update_of_a_traced_step_compiles_once_and_equals_no_jit(key):
    # The same share at every step: what differs between steps is the key alone.
    method = jaxsparse.set_itop(
        sparsity=0.5, total_steps=40, update_interval=10, final_drop_fraction=0.5
    )
    params = {"fc": {"kernel": jax.random.normal(key, (8, 8))}}
    masks = method.init(key, params)
    traces = []

    @jax.jit
    def update(params, masks, step):
        traces.append(1)
        return method.update(params, params, masks, step, key=key)

    for step in (10, 20):
        chex.assert_trees_all_equal(
            update(params, masks, step), method.update(params, params, masks, step, key=key)
        )
    assert len(traces) == 1
    assert (
        update(params, masks, 10).masks["fc"]["kernel"]
        != update(params, masks, 20).masks["fc"]["kernel"]
    ).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "globl"}, "scope 'globl' must be 'global' or 'layer'"),
        ({"distribution": "erk"}, r"distribution 'erk' must be a function such as erk\(\)"),
        (
            {"distribution": jaxsparse.erk},
            r"distribution erk must be a function such as erk\(\), of",
        ),
        ({"min_keep": -5}, "min_keep -5 must be at least 0"),
        ({"min_keep": 1.5}, "min_keep 1.5 must be at least 0, and a whole number"),
        ({"min_keep": True}, "min_keep True must be at least 0, and a whole number"),
        ({"prunable": ("kernel",)}, r"prunable \('kernel',\) must be \(path regex, True, False"),
        ({"prunable": 3}, r"prunable 3 must be \(path regex, True, False or None\) pairs"),
    ],
)
def test_compose_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        one_event([prune()], **options)


def test_stages_out_of_range():
    with pytest.raises(ValueError, match="rounding 'round' must be 'floor' or 'ceil'"):
        exchange(rounding="round")
    method = one_event([exchange(grow="gradient", rounding="floor")])
    with pytest.raises(ValueError, match="score 'gradient' must be a function"):
        method.update(PARAMS, PARAMS, MASKS, 10)


PARAMS = {"fc": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}}
MASKS = jaxsparse.dense_masks(PARAMS)


@pytest.mark.parametrize(
    ("grads", "masks", "message"),
    [
        (
            PARAMS,
            {"fc": {"kernel": MASKS["fc"]["kernel"]}},
            "masks has no leaf fc/bias, which params",
        ),
        (PARAMS, MASKS | {"x": True}, "masks has a leaf x, which params lacks"),
        (
            PARAMS,
            {"fc": MASKS["fc"] | {"kernel": jnp.ones((4, 2), bool)}},
            "masks at fc/kernel has sh",
        ),
        (PARAMS, PARAMS, "masks at fc/bias has dtype float32; it must be bool"),
        ({"fc": {"bias": jnp.ones(4)}}, MASKS, "grads has no leaf fc/kernel, which params has"),
        (PARAMS | {"x": 1.0}, MASKS, "grads has a leaf x, which params lacks"),
        (
            {"fc": PARAMS["fc"] | {"bias": 1.0}},
            MASKS,
            r"grads at fc/bias has shape \(\), params has",
        ),
    ],
)
def test_trees_that_differ(grads, masks, message):
    method = jaxsparse.rigl(sparsity=0.5, total_steps=10, update_interval=1)
    with pytest.raises(ValueError, match=message):
        jax.jit(method.update)(PARAMS, grads, masks, 1)


def test_score_of_wrong_shape_names_the_leaf():
    method = one_event([prune(lambda w, g, key: jnp.abs(w).sum())])
    with pytest.raises(ValueError, match=r"score of fc/kernel has shape \(\), the leaf \(2, 4\)"):
        method.update(PARAMS, PARAMS, MASKS, 1)


def test_integer_weights_name_the_leaf():
    params = {"fc": {"kernel": jnp.ones((2, 4), jnp.int32)}}
    with pytest.raises(ValueError, match="the scores of fc/kernel have dtype int32"):
        one_event([prune()]).update(params, params, jaxsparse.dense_masks(params), 1)


def test_huge_leaf_is_refused_without_being_allocated(key):
    huge = {"fc": {"kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}}
    method = jaxsparse.rigl(sparsity=0.9, total_steps=10, update_interval=1)
    with pytest.raises(ValueError, match="leaf fc/kernel has 2147483648 entries; at most 21474836"):
        jax.eval_shape(method.init, key, huge)
    fits = {"fc": {"kernel": jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)}}
    masks = jax.eval_shape(method.init, key, fits)
    event = jax.eval_shape(method.update, fits, fits, masks, 1)
    assert event.kept["fc"]["kernel"] == jax.ShapeDtypeStruct((2**15, 2**15), jnp.bool_)


def test_a_new_criterion_and_a_new_stage_are_functions(key):
    def movement(w, g, key):  # keep what moves away from zero
        return -w * g

    def densify(weights, signal, masks, row, key):  # grows, up to the target
        scores = {p: jnp.where(masks[p], jnp.inf, jnp.abs(signal[p])) for p in masks}
        return top_k(scores, row.target)

    params = {"w": jnp.array([1.0, -1.0, 2.0, -2.0])}
    grads = {"w": jnp.array([1.0, 1.0, -1.0, -1.0])}  # -w g = -1, 1, 2, -2
    method = one_event([prune(movement)], scope="global", prunable=ALL)
    event = method.update(params, grads, jaxsparse.dense_masks(params), 1)
    assert event.masks["w"].tolist() == [False, True, True, False]

    grads = {"w": jnp.array([1.0, 3.0, 2.0, 4.0])}
    method = one_event([densify], scope="global", prunable=ALL)
    event = method.update(params, grads, {"w": jnp.array([True, False, False, False])}, 1)
    assert event.masks["w"].tolist() == [True, False, False, True]
    assert event.kept["w"].tolist() == [True, False, False, False]


def test_a_method_with_rules_in_a_list_is_hashable_for_jit():
    rules = [(r"kernel", True)]
    method = jaxsparse.rigl(sparsity=0.5, total_steps=10, update_interval=2, prunable=rules)
    assert isinstance(hash(method), int)


def test_a_method_answers_what_loops_ask_of_it():
    options = {"sparsity": 0.9, "total_steps": 1000}
    plain = jaxsparse.rigl(**options)
    assert plain.pattern == () and plain.cycles is None and plain.cycles_end == 0
    assert plain.scope == "layer" and plain.has_known_counts
    blocks = jaxsparse.with_pattern(plain, jaxsparse.block((4, 4)))
    assert [regex for regex, _ in blocks.pattern] == [""]
    cyclic = jaxsparse.with_cycles(plain, num_cycles=2, cycle_steps=200)
    assert cyclic.cycles.ends == (200, 400) and cyclic.cycles_end == 400
    for scope, known in (("global", False), ("layer", True)):
        method = jaxsparse.gmp(**options, update_interval=100, scope=scope)
        assert method.scope == scope and method.has_known_counts == known
