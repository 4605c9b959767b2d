"""Counts of True: known answers, under vmap, and on meshes of either kind of axes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsparse.counting import count_true

A, E = AxisType.Auto, AxisType.Explicit
X = np.random.default_rng(0).normal(size=(8, 16, 32)).astype(np.float32)
COUNTS = ((X > 0).sum(), (X > 1).sum(), (X > 2).sum())


def counts(x):
    return count_true(x > 0, x > 1) + count_true(x > 2)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (2, 3, 4)], ids=str)
def test_shapes(shape):
    ones = jnp.ones(shape, bool)
    assert count_true(ones) == (ones.size,)
    assert count_true(ones, ~ones, ones) == (ones.size, 0, ones.size)


def test_above_the_integers_of_float32():
    # 2**24 + 1 is the first integer that float32 does not have.
    size = 2**24 + 3
    assert count_true(jnp.ones(size, bool)) == (size,)
    mask = jnp.arange(size) != 5
    assert jax.jit(count_true)(mask, ~mask) == (size - 1, 1)


def test_under_vmap():
    one, two, three = jax.jit(jax.vmap(counts))(X)
    for got, level in ((one, 0), (two, 1), (three, 2)):
        np.testing.assert_array_equal(got, (X > level).sum((1, 2)))
    # One mask has the batch and the other has not.
    both = jax.vmap(lambda x, y: count_true(x > 0, y > 1), (0, None))(X, X[0])
    np.testing.assert_array_equal(both[0], (X > 0).sum((1, 2)))
    np.testing.assert_array_equal(both[1], np.full(8, (X[0] > 1).sum()))


@pytest.mark.parametrize("spec", [("a", None, "b"), (None, ("a", "b")), ()], ids=str)
@pytest.mark.parametrize("kinds", [(A, A), (E, E), (A, E)], ids=str)
@pytest.mark.parametrize("is_set", [False, True])
def test_on_a_mesh_in_any_layout(spec, kinds, is_set):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=kinds)
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec(*spec)))
    if is_set:
        with jax.set_mesh(mesh):
            assert jax.jit(counts)(x) == COUNTS
    else:
        assert jax.jit(counts)(x) == COUNTS


@pytest.mark.parametrize("kinds", [(A, A), (E, E)], ids=str)
def test_only_counts_travel(kinds):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=kinds)
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec(None, "a", "b")))
    text = jax.jit(counts).lower(x).compile().as_text()
    assert set(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)) == {
        "all-reduce"
    }


def test_inside_shard_map_it_counts_the_part():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(A,))
    spec = PartitionSpec("a")
    parts = jax.shard_map(
        lambda x: jnp.stack(counts(x))[None], mesh=mesh, in_specs=spec, out_specs=spec
    )
    np.testing.assert_array_equal(jax.jit(parts)(X)[:, 0], (X > 0).sum((1, 2)))


def test_where_no_layout_is_known_every_device_counts_all():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(A, A))
    with jax.set_mesh(mesh):
        assert jax.jit(counts)(X) == COUNTS
