"""Every method under jit: traced once, same bits as without, any kind of step, strict dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.types import Observed
from tests.conformance.table import CASES, TOTAL, init, method_of, update
from tests.trees import FIXED, fill


@pytest.mark.parametrize("name", CASES)
def test_a_run_traces_its_step_once_and_its_event_once(name, key):
    method, case = method_of(name), CASES[name]
    state = jaxsparse.TrainState.create(
        apply_fn=lambda: None,
        params=fill(FIXED, 0),
        tx=optax.sgd(0.1, momentum=0.9),
        method=method,
        key=key,
        track_exploration=True,
    )
    traces = []

    @jax.jit
    def plain(state, grads):
        traces.append("plain")
        return state.apply_gradients(grads=grads)

    @jax.jit
    def with_event(state, grads):
        traces.append("event")
        return state.apply_gradients(grads=grads, event=True)

    first = jax.tree.map(jnp.copy, state)
    for n in range(1, TOTAL + 1):
        state = (with_event if method.is_due(n) else plain)(state, fill(FIXED, n))
        chex.assert_trees_all_equal_structs(state, first)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
    assert sorted(traces) == (["event", "plain"] if case.steps else ["plain"])
    assert int(state.step) == TOTAL


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", CASES)
def test_shapes_are_known_without_computing(name, dtype, key):
    method = method_of(name)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), FIXED)
    masks = jax.eval_shape(method.init, key, params)
    event = jax.eval_shape(method.update, params, Observed(params), masks, 2, key=key)
    for tree in (masks, event.masks, event.kept):
        chex.assert_trees_all_equal_structs(tree, params)
        chex.assert_trees_all_equal_shapes(tree, params)
        assert all(leaf.dtype == jnp.bool_ for leaf in jax.tree.leaves(tree))
    metrics = [(x.shape, x.dtype) for x in event.metrics]
    assert metrics == [((4,), jnp.int32)] * 5 + [((), jnp.int32)]
    if dtype == jnp.float32:
        params = fill(FIXED, 0)
        real = init(method, key, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(masks, real)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            event, update(method, params, Observed(params), real, 2, key)
        )


@pytest.mark.parametrize("name", CASES)
def test_no_tracer_leaks_under_strict_dtypes(name, key):
    method = CASES[name].make(fill(FIXED, 0))
    with jax.checking_leaks(), jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            params = fill(FIXED, 0, dtype)
            masks = jax.eval_shape(method.init, key, params)
            jax.eval_shape(method.update, params, Observed(params), masks, 2, key=key)
            jax.eval_shape(
                lambda p, m, k, n, method=method: method.update(p, Observed(p), m, n, key=k),
                params,
                masks,
                key,
                jnp.int32(2),
            )


@pytest.mark.parametrize("name", CASES)
def test_strict_dtypes_in_double_precision(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        method, key = CASES[name].make(FIXED), jax.random.key(0)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), FIXED)
        masks = jax.eval_shape(method.init, key, params)
        event = jax.eval_shape(method.update, params, Observed(params), masks, 2, key=key)
        assert all(x.dtype == jnp.int32 for x in event.metrics)


# Without jit every operation compiles by itself. These five hold every kind of stage and scope.
QUICK = ("static", "gmp_layer", "granet_min_keep", "set", "composed")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_compiled_and_not_compiled_agree_bit_for_bit(name, key):
    method, params, grads = method_of(name), fill(FIXED, 0), fill(FIXED, 1)
    masks = init(method, key, params)
    chex.assert_trees_all_equal(masks, method.init(key, params))
    params = jaxsparse.apply_masks(params, masks)
    for step in CASES[name].steps[1:3]:
        event = method.update(params, Observed(grads), masks, step, key=key)  # a Python int
        chex.assert_trees_all_equal(event, update(method, params, grads, masks, step, key))


def test_a_step_is_an_int_or_traced_or_any_integer_array(key):
    method, params, grads = method_of("gmp"), fill(FIXED, 0), fill(FIXED, 1)
    masks = init(method, key, params)
    baked_in = jax.jit(lambda p, g, m, k: method.update(p, Observed(g), m, 4, key=k))
    want = baked_in(params, grads, masks, key)
    for step in (4, np.int64(4), np.int8(4), jnp.int32(4), jnp.uint32(4), jnp.uint8(4)):
        chex.assert_trees_all_equal(want, update(method, params, grads, masks, step, key))
    for step in (4.0, True, [4]):
        with pytest.raises(ValueError, match="step is .*; it must be one integer"):
            update(method, params, grads, masks, jnp.asarray(step), key)


def test_a_step_beyond_int32_is_after_all_events(key):
    method, params, grads = method_of("gmp"), fill(FIXED, 0), fill(FIXED, 1)
    masks = init(method, key, params)
    last = update(method, params, grads, masks, method.timetable.events[-1].step, key)
    late = update(method, params, grads, masks, np.uint32(2**31), key)
    chex.assert_trees_all_equal(late.masks, last.masks)
