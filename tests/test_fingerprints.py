"""Fingerprints: one number for equal values, however they lie; copies that differ are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse
from jaxsparse.fingerprints import array_fingerprint


def mix(x):
    x = int(x)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def by_hand(words):
    """The formula at the top of the module, word by word."""
    return sum(mix(int(word) ^ mix(i + 1)) for i, word in enumerate(words)) % 2**32


FLOATS = np.array([[0.0, -0.0, 1.5], [np.nan, np.inf, 1e-40]], np.float32)
ARRAYS = {
    "bool": (np.array([True, False, True]), [1, 0, 1]),
    "float32": (FLOATS, FLOATS.view(np.uint32).ravel()),
    "int8": (np.array([-1, 2], np.int8), [255, 2]),
    "bfloat16": (jnp.array([1.0, -2.0], jnp.bfloat16), [0x3F80, 0xC000]),
    "int4": (jnp.array([-1, 3], jnp.int4), [15, 3]),
    "numpy int4": (np.array(jnp.array([-1, 3], jnp.int4)), [15, 3]),
    "float64": (np.array([1.0, 2.0**-1074]), [0, 0x3FF00000, 1, 0]),
    "int64": (np.array(2**40 + 7), [7, 256]),
    "complex64": (np.array([1 - 2j], np.complex64), [0x3F800000, 0xC0000000]),
    "key": (jax.random.key(5), [0, 5]),
    "scalar": (np.float32(1.0), [0x3F800000]),
    "empty": (np.zeros((0, 3)), []),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_formula(name):
    array, words = ARRAYS[name]
    assert int(array_fingerprint(array)) == by_hand(words)


def masks(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": {"kernel": rng.random((16, 8)) < 0.3}, "b": {"kernel": rng.random((8, 16)) < 0.3}}


def on(devices, spec, tree, kind=AxisType.Auto):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("x",), axis_types=(kind,))
    return jax.device_put(tree, NamedSharding(mesh, spec))


def test_equal_masks_have_one_number_on_any_devices():
    numbers = {int(jaxsparse.fingerprint(masks()))}
    for devices in (1, 2, 8):
        for spec in (P(), P("x"), P(None, "x")):
            numbers.add(int(jaxsparse.fingerprint(on(devices, spec, masks()))))
    numbers.add(int(jaxsparse.fingerprint(on(8, P("x"), masks(), AxisType.Explicit))))
    numbers.add(int(jax.jit(jaxsparse.fingerprint)(masks())))
    assert len(numbers) == 1


def test_it_depends_on_entries_places_and_leaves():
    first = masks()
    swapped = {"a": first["a"], "b": {"kernel": first["b"]["kernel"][::-1]}}
    moved = {"a": {"kernel": first["b"]["kernel"].T}, "b": {"kernel": first["a"]["kernel"].T}}
    renamed = {"b": {"kernel": first["a"]["kernel"]}, "a": first["b"]}
    flipped = jax.tree.map(np.copy, first)
    flipped["b"]["kernel"][3, 4] ^= True
    trees = [first, swapped, moved, renamed, flipped, masks(1)]
    assert len({int(jaxsparse.fingerprint(tree)) for tree in trees}) == len(trees)


def with_copies(copies, spec):
    """A leaf on a mesh of 2 x 4 whose part on each device is given."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, spec)
    parts = [jax.device_put(x, d) for x, d in zip(copies, mesh.devices.flat, strict=True)]
    rows = copies[0].shape[0] * (2 if spec else 1)
    return jax.make_array_from_single_device_arrays((rows, *copies[0].shape[1:]), sharding, parts)


@pytest.mark.parametrize("spec", [P(), P("x")])
def test_copies_that_differ_are_found(spec):
    same = [np.full((2, 3), i >= 4 and spec != P()) for i in range(8)]
    fine = {"a": with_copies(same, spec), "b": with_copies(same, spec)}
    jaxsparse.check_replicas(fine)
    other = [x.copy() for x in same]
    other[5][1, 2] ^= True
    with pytest.raises(ValueError, match=r"masks at b: copies .* differ \(1 of 2 leaves"):
        jaxsparse.check_replicas({"a": fine["a"], "b": with_copies(other, spec)})


def test_leaves_without_copies_are_left_alone():
    jaxsparse.check_replicas({"host": np.ones(3), "one": jnp.ones(3), **on(8, P("x"), masks())})
