"""An event on 8 devices is the event on one, bit for bit, however the weights are laid out.

Masks are counted where they are: on 8 devices, and on a mesh of two processes.
"""

import functools
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
import jaxsparse.sparse
from jaxsparse.export import masks_to_torch
from jaxsparse.selection.bisection import CANDIDATES
from tests.two_processes import counted
from tests.two_processes import drawn as drawn_masks

SHAPES = {
    "conv": {"kernel": (3, 3, 16, 32)},
    "fc": {"kernel": (64, 128)},
    "head": {"kernel": (9, 7)},
}
LAYOUTS = {
    "output": {"conv": (None, None, None, "x"), "fc": (None, "x"), "head": ()},
    "input": {"conv": (None, None, "x"), "fc": ("x",), "head": ()},
    "replicated": {"conv": (), "fc": (), "head": ()},
}


def drawn(seed):
    leaves, tree = jax.tree.flatten(SHAPES, is_leaf=lambda shape: isinstance(shape, tuple))
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties to cut.
    return tree.unflatten([np.round(rng.normal(size=s), 1).astype(np.float32) for s in leaves])


def laid_out(tree, layout, kind=AxisType.Auto):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    place = lambda path, x: jax.device_put(
        x, NamedSharding(mesh, PartitionSpec(*LAYOUTS[layout][path[0].key]))
    )
    return jax.tree_util.tree_map_with_path(place, tree)


# At step 4, the middle of its first cycle, masks grow; its other events are another branch.
east = functools.partial(jaxsparse.east, cycle_steps=8, cycle_interval=4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [jaxsparse.gmp, jaxsparse.granet_st, jaxsparse.set_, east])
def test_an_event_on_eight_devices_is_the_event_on_one(make, layout, key):
    method = make(sparsity=0.9, total_steps=20, update_interval=2)
    params, grads = drawn(0), drawn(1)
    masks = method.init(key, params)
    one = method.update(params, grads, masks, jnp.int32(4), key=key)
    eight = method.update(
        *(laid_out(tree, layout) for tree in (params, grads, masks)), jnp.int32(4), key=key
    )
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(eight))
    assert jaxsparse.num_active(eight.masks) == jaxsparse.num_active(one.masks)


@pytest.mark.parametrize("make", [jaxsparse.granet_st, east])
def test_the_same_with_explicit_axes(make, key):
    method = make(sparsity=0.9, total_steps=20, update_interval=2)
    trees = drawn(0), drawn(1), method.init(key, drawn(0))
    one = method.update(*trees, jnp.int32(4))
    eight = method.update(
        *(laid_out(tree, "input", AxisType.Explicit) for tree in trees), jnp.int32(4)
    )
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(eight))


PATTERNS = [jaxsparse.n_of_m(2, 4), jaxsparse.block((4, 4)), jaxsparse.channels(-2)]


@pytest.mark.parametrize(
    ("layout", "kind"),
    [("output", AxisType.Auto), ("input", AxisType.Auto), ("input", AxisType.Explicit)],
)
@pytest.mark.parametrize("pattern", PATTERNS, ids=[pattern.name for pattern in PATTERNS])
def test_patterns_on_eight_devices(pattern, layout, kind, key):
    method = jaxsparse.with_pattern(
        jaxsparse.rigl(sparsity=0.5, total_steps=20, update_interval=2),
        [("head", None), ("", pattern)],  # (9, 7) cannot be cut
    )
    trees = drawn(0), drawn(1), method.init(key, drawn(0))
    one = method.update(*trees, jnp.int32(4))
    eight = method.update(*(laid_out(tree, layout, kind) for tree in trees), jnp.int32(4))
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(eight))
    assert one.metrics.num_grown.any()


COLLECTIVE = r"= (\(.*?\)|\S+) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [jaxsparse.gmp, jaxsparse.granet_st, east])
def test_an_event_adds_up_a_few_integers_and_gathers_nothing(make, layout, key):
    method = make(sparsity=0.9, total_steps=20, update_interval=2)
    trees = drawn(0), drawn(1), method.init(key, drawn(0))
    args = [laid_out(tree, layout) for tree in trees]
    text = jax.jit(method.update).lower(*args, jnp.int32(4)).compile().as_text()
    found = re.findall(COLLECTIVE, text)
    assert bool(found) == (layout != "replicated")
    for result, kind in found:
        assert kind == "all-reduce"
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        assert {dtype for dtype, _ in shapes} <= {"s32", "pred"}  # counts, and what is finite
        elements = sum(math.prod(map(int, filter(None, dims.split(",")))) for _, dims in shapes)
        assert elements <= len(SHAPES) * CANDIDATES


@pytest.mark.parametrize(
    ("layout", "kind"),
    [("output", AxisType.Auto), ("input", AxisType.Auto), ("output", AxisType.Explicit)],
)
def test_counts_of_masks_on_eight_devices(layout, kind):
    params, masks = drawn(0), jaxsparse.dense_masks(drawn(0))
    masks = jax.tree.map(lambda mask, p: np.array(mask) & (p > 0.5), masks, params)
    masks["fc"]["kernel"][:, 5:9] = False
    params = jaxsparse.apply_masks(params, masks)
    theirs, there = laid_out(params, layout, kind), laid_out(masks, layout, kind)
    assert jaxsparse.num_active(there) == jaxsparse.num_active(masks)
    assert jaxsparse.sparsity(there) == jaxsparse.sparsity(masks)
    assert jaxsparse.sparse.count_active(there) == jaxsparse.sparse.count_active(masks)
    assert jaxsparse.summary(theirs, there) == jaxsparse.summary(params, masks)
    assert jaxsparse.summary(theirs, there).layers[1].dead.num_out >= 4
    assert float(jaxsparse.exploration_rate(there)) == float(jaxsparse.exploration_rate(masks))
    assert jaxsparse.overlap(there, there).total == 1.0
    chex.assert_trees_all_equal(masks_to_torch(there), masks_to_torch(masks))
    jaxsparse.check(theirs, (), there)
    theirs["fc"]["kernel"] = laid_out(jax.tree.map(np.ones_like, drawn(0)), layout, kind)["fc"][
        "kernel"
    ]
    num = masks["fc"]["kernel"].size - np.count_nonzero(masks["fc"]["kernel"])
    first = tuple(int(i) for i in np.argwhere(~masks["fc"]["kernel"])[0])
    message = f"params at fc/kernel: {num} of {num} inactive .* first at {re.escape(str(first))} is"
    with pytest.raises(ValueError, match=f"{message} 1.0"):
        jaxsparse.check(theirs, (), there)


def test_counts_of_masks_that_two_processes_hold_parts_of():
    """Each process can read only its own parts: bringing a mask to the host would raise."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    worker = str(Path(__file__).with_name("two_processes.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, worker, rank, port],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    params, masks = drawn_masks()
    others = jax.tree.map(lambda mask: np.roll(mask, 1, 0), masks)
    here = json.loads(json.dumps(counted(params, masks, others)))
    for stdout, stderr in outputs:
        assert stdout, stderr
        assert json.loads(stdout.splitlines()[-1]) == here
    assert "the first at (60, 3) is 2.5" in here["bad"]
