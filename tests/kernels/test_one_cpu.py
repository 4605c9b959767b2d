"""Which programs call a kernel; all others do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.kernels import load
from jaxsparse.kernels.one_cpu import on_one_cpu

SCORES = {"a": jnp.round(3 * jax.random.normal(jax.random.key(0), (16, 20))), "b": jnp.arange(64.0)}
SELECT = functools.partial(jaxsparse.top_k, k=100)


def calls_kernel(function, *args):
    return "jaxsparse_select" in jax.jit(function).lower(*args).as_text()


@pytest.fixture(scope="module")
def expected():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    scores = jax.device_put(SCORES, NamedSharding(mesh, PartitionSpec()))
    return jax.device_get(jax.jit(lambda scores: SELECT(scores))(scores))


def assert_same(selected, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(selected), expected)


def test_a_program_for_one_cpu(engine, expected):
    select = lambda scores: SELECT(scores)
    assert calls_kernel(select, SCORES) == (engine == "compiled")
    assert_same(jax.jit(select)(SCORES), expected)
    assert_same(select(SCORES), expected)  # no jit
    with jax.disable_jit():
        assert_same(select(SCORES), expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_program_for_a_mesh(kind, expected):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    scores = jax.device_put(SCORES, NamedSharding(mesh, PartitionSpec("x")))
    assert not calls_kernel(lambda scores: SELECT(scores), scores)
    assert_same(jax.jit(lambda scores: SELECT(scores))(scores), expected)


def test_a_mesh_that_only_the_results_name(expected):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, PartitionSpec("x"))
    select = jax.jit(lambda: SELECT(SCORES).masks, out_shardings=cut)
    assert "jaxsparse_select" not in select.lower().as_text()
    assert_same(select(), expected.masks)


def test_each_device_for_itself(expected):
    """In `shard_map` a device selects from its own part, without a kernel."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    scores = jax.tree.map(lambda x: jnp.stack([x, -x]), SCORES)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("x"),
        out_specs=PartitionSpec("x"),
        check_vma=False,
    )
    def select(scores):
        masks = SELECT(jax.tree.map(lambda x: x[0], scores)).masks
        return jax.tree.map(lambda mask: mask[None], masks)

    assert not calls_kernel(select, scores)
    masks = jax.jit(select)(scores)
    assert_same(jax.tree.map(lambda mask: mask[0], masks), expected.masks)


def test_under_vmap(expected):
    scores = jax.tree.map(lambda x: jnp.stack([x, x + 1.0]), SCORES)
    select = jax.vmap(lambda scores: SELECT(scores))
    assert not calls_kernel(select, scores)
    assert_same(jax.tree.map(lambda x: x[1], jax.jit(select)(scores)), expected)


def test_an_exported_event_needs_no_kernel(key):
    method = jaxsparse.rigl(sparsity=0.9, total_steps=20, update_interval=2)
    params = {"kernel": SCORES["a"]}
    args = params, {"kernel": SCORES["a"] + 1.0}, method.init(key, params), jnp.int32(4)
    exported = jax.export.export(jax.jit(method.update))(*args)
    assert "jaxsparse_select" not in exported.mlir_module()
    event = exported.call(*args)
    jax.tree.map(np.testing.assert_array_equal, tuple(event), tuple(method.update(*args)))


def test_inside_a_function_that_is_differentiated():
    def loss(w):
        return jaxsparse.apply_mask(w, jaxsparse.top_k_mask(jnp.abs(w), 10)).sum()

    grads = jax.jit(jax.grad(loss))(SCORES["a"])
    np.testing.assert_array_equal(grads, jaxsparse.top_k_mask(jnp.abs(SCORES["a"]), 10))


def test_tracing_neither_loads_kernels_nor_traces_what_takes_their_place(monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(load, "backend", fail)
    shapes = jax.eval_shape(lambda x: on_one_cpu(lambda x: x + 1.0, fail, x), jnp.zeros(3))
    assert shapes.shape == (3,)
