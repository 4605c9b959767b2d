"""Checkpoints: to the bit, in any tree, on any devices; damage and strangers are told apart."""

import functools
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.checkpoint import (
    _raise_if_of_system,
    restore_checkpoint,
    restore_masks,
    save_checkpoint,
)
from jaxsparse.flat_state import flatten
from tests.trees import FIXED, every_other, fill

ROOT = Path(__file__).parent.parent


def bits(tree) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every leaf by path; equal if and only if the trees are equal to the bit."""
    arrays, records = flatten(tree)
    return {path: (records[path].dtype, np.asarray(x).tobytes()) for path, x in arrays.items()}


def content(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def small(seed=0, size=(4, 3)):
    """A small state with its masks, all of it depending on the seed."""
    rng = np.random.default_rng(seed)
    return {
        "params": {"kernel": jnp.asarray(rng.normal(size=size), jnp.float32)},
        "masks": {"kernel": jnp.asarray(rng.random(size) < 0.5)},
        "key": jax.random.key(seed),
    }


@functools.partial(jax.jit, static_argnames="event", donate_argnames="state")
def step(state, grads, event):
    return state.apply_gradients(grads=grads, event=event)


class WithMore(jaxsparse.TrainState):
    batch_stats: Any
    nothing: Any


def train_state(method=jaxsparse.snfs, seed=0):
    return WithMore.create(
        apply_fn=None,
        params=fill(FIXED, seed),
        tx=optax.adamw(0.01),
        method=method(sparsity=0.7, total_steps=12, update_interval=2),
        key=jax.random.key(seed),
        track_exploration=True,
        batch_stats={"mean": jnp.ones(3)},
        nothing=None,
    )


def test_a_train_state_comes_back_to_the_bit_in_its_own_containers(tmp_path):
    state = train_state()
    for n in (1, 2, 3):
        state = step(state, fill(FIXED, n), event=state.method.is_due(n))
    save_checkpoint(tmp_path, 3, state, extras={"best": 0.1 + 0.2, "name": "x"})
    before = bits(state)
    step(state, fill(FIXED, 4), event=True)  # donates what was saved
    fresh = train_state(seed=1)
    restored = restore_checkpoint(tmp_path, fresh)
    assert (restored.step, restored.note) == (3, None)
    assert restored.extras == {"best": 0.1 + 0.2, "name": "x"}
    assert bits(restored.state) == before
    assert jax.tree.structure(restored.state) == jax.tree.structure(fresh)
    step(restored.state, fill(FIXED, 4), event=True)  # every leaf has a buffer of its own


def odd():
    nans = np.array([0x7FC00123, 0xFFC00000, 0x80000000, 0x7F800000], np.uint32)
    return {
        "nans": jnp.asarray(nans.view(np.float32)),
        "minus zero": -jnp.zeros(3),
        "a/b": {"c": jnp.zeros((), jnp.bfloat16)},
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "old key": jax.random.key_data(jax.random.key(1)),
        "numpy": np.arange(3),
        "scalars": [3, 2.5, True, np.float16(0.1), np.array(7)],
        "int4": jnp.arange(3, dtype=jnp.int4),
    }


def test_values_and_types_that_formats_lose(tmp_path):
    state = odd()
    save_checkpoint(tmp_path, 0, state)
    back = restore_checkpoint(tmp_path, jax.tree.map(lambda x: x, state)).state
    assert bits(back) == bits(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    types = lambda tree: [type(leaf) for leaf in jax.tree.leaves(tree)]
    assert types(back) == types(state)
    assert jax.random.key_impl(back["keys"]) == jax.random.key_impl(state["keys"])


def test_nnx_and_equinox_params(tmp_path):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    layer = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    for name, params, path in [
        ("nnx", nnx.state(model, nnx.Param), "kernel"),
        ("equinox", eqx.filter(layer, eqx.is_array), "layers/0/weight"),
    ]:
        masks = jax.tree.map(lambda x: x > 0, params)
        tx = jaxsparse.masked(optax.adam(0.1))
        state = {"params": params, "masks": masks, "opt_state": tx.init(params)}
        save_checkpoint(tmp_path / name, 1, state)
        back = restore_checkpoint(tmp_path / name, jax.tree.map(jnp.zeros_like, state))
        assert bits(back.state) == bits(state)
        assert jax.tree.structure(back.state) == jax.tree.structure(state)
        assert f"params/{path}" in bits(back.state)
        chex.assert_trees_all_equal(restore_masks(tmp_path / name, like=params), masks)


def sharded(tree):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    layout = lambda x: PartitionSpec(*(["x"] if x.ndim and x.shape[0] % 8 == 0 else []))
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, layout(x))), tree)


@pytest.mark.parametrize("direction", ["8 to 1", "1 to 8"])
def test_it_comes_back_on_the_devices_of_the_state_at_hand(direction, tmp_path):
    one = small(size=(16, 3))
    eight, at_hand = sharded(one), small(1, size=(16, 3))
    if direction == "1 to 8":
        eight, at_hand = one, sharded(at_hand)
    save_checkpoint(tmp_path, 5, eight)
    back = restore_checkpoint(tmp_path, at_hand).state
    assert bits(back) == bits(one)
    for new, old in zip(*map(jax.tree.leaves, (back, at_hand)), strict=True):
        assert (new.sharding, new.committed) == (old.sharding, old.committed)
    assert len(back["params"]["kernel"].sharding.device_set) == int(direction[-1])


def test_masks_without_knowing_anything_else(tmp_path):
    state = train_state()
    save_checkpoint(tmp_path / "linen", 2, {"run": state, "best": {"old": {"masks": jnp.ones(2)}}})
    masks = restore_masks(tmp_path / "linen")
    assert masks["conv"]["kernel"].dtype == bool
    assert masks["blocks"]["0"]["kernel"].shape == (3, 4)  # a list becomes a dict
    chex.assert_trees_all_equal(restore_masks(tmp_path / "linen", like=state.params), state.masks)
    save_checkpoint(tmp_path / "plain", 7, small())
    save_checkpoint(tmp_path / "plain", 9, small(1))
    chex.assert_trees_all_equal(restore_masks(tmp_path / "plain", 7), small()["masks"])
    chex.assert_trees_all_equal(restore_masks(tmp_path / "plain"), small(1)["masks"])
    save_checkpoint(tmp_path / "leaf", 1, {"masks": every_other(FIXED)["conv"]["kernel"]})
    assert restore_masks(tmp_path / "leaf").shape == (2, 2, 2, 3)


def memory(seed=0):
    """Leaves that are called "value" beside others; boxes of one value have the same key."""
    rng = np.random.default_rng(seed)
    draw = lambda: jnp.asarray(rng.random(4) < 0.5)
    masks = {"mem": {"key": draw(), "value": draw()}, "fc": {"kernel": {"value": draw()}}}
    return {"params": jax.tree.map(jnp.float32, masks), "masks": masks}


def test_a_leaf_called_value_is_a_leaf(tmp_path):
    save_checkpoint(tmp_path, 1, memory())
    masks = memory()["masks"]
    bare = masks | {"fc": {"kernel": masks["fc"]["kernel"]["value"]}}
    chex.assert_trees_all_equal(restore_masks(tmp_path), bare)
    chex.assert_trees_all_equal(restore_masks(tmp_path, like=masks), masks)
    assert bits(restore_checkpoint(tmp_path, memory(1)).state) == bits(memory())


def test_checkpoints_that_left_the_name_value_out_go_on(tmp_path):
    """As versions wrote them that knew no siblings."""
    state, masks = memory(), memory()["masks"]
    old = {
        f"{field}/{path}": leaf
        for field, tree in state.items()
        for path, leaf in {
            "mem/key": tree["mem"]["key"],
            "mem": tree["mem"]["value"],
            "fc/kernel": tree["fc"]["kernel"]["value"],
        }.items()
    }
    save_checkpoint(tmp_path, 1, old)
    assert bits(restore_checkpoint(tmp_path, memory(1)).state) == bits(state)
    chex.assert_trees_all_equal(restore_masks(tmp_path, like=masks), masks)
    chex.assert_trees_all_equal(restore_masks(tmp_path)["mem"], masks["mem"])


def test_masks_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint$"):
        restore_masks(tmp_path)
    save_checkpoint(tmp_path, 1, {"params": jnp.ones(2), "step": 1})
    with pytest.raises(ValueError, match="/1 cannot give masks: .* 0 outermost masks in params, s"):
        restore_masks(tmp_path)
    save_checkpoint(tmp_path, 2, {"a": {"masks": jnp.ones(2)}, "b": {"masks": jnp.ones(2)}})
    with pytest.raises(ValueError, match="2 outermost masks in a, b"):
        restore_masks(tmp_path)
    with pytest.raises(ValueError, match=r"has no checkpoint 3, there are \[1, 2\]"):
        restore_masks(tmp_path, 3)
    with pytest.raises(ValueError, match=r"has no checkpoint 0, there are \[1, 2\]"):
        restore_masks(tmp_path, 0)
    with pytest.raises(ValueError, match="step 1.5 must be a whole number, at least 0"):
        restore_masks(tmp_path, 1.5)
    save_checkpoint(tmp_path, 3, small())
    with pytest.raises(ValueError, match=r"3 at kernel has shape \(4, 3\), like has \(5, 3\)"):
        restore_masks(tmp_path, like={"kernel": jnp.ones((5, 3))})


def test_an_empty_folder_and_none_at_all(tmp_path):
    assert restore_checkpoint(tmp_path, small()) is None
    assert restore_checkpoint(tmp_path / "none", small()) is None
    assert not (tmp_path / "none").exists()


def test_the_oldest_are_deleted(tmp_path):
    for n in (1, 2, 3):
        save_checkpoint(tmp_path, n, small(n))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    save_checkpoint(tmp_path, 4, small(4), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["4"]


CIRCLE: dict[str, Any] = {"name": "x"}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((2, small()), {}, "step 2 must be above 2, the newest checkpoint in"),
        ((1.5, small()), {}, "step 1.5 must be a whole number, at least 0"),
        ((True, small()), {}, "step True must be a whole number"),
        ((-1, small()), {}, "step -1 must be a whole number, at least 0"),
        ((3, small()), {"keep": 0}, "keep 0 must be a whole number, at least 1"),
        ((3, small()), {"extras": {"a": np.ones(2)}}, "must be what JSON takes"),
        ((3, small()), {"extras": CIRCLE}, "extras .*'name': 'x'.* must be .*: Circular reference"),
        ((3, {"params": {"act": jax.nn.relu}}), {}, "state at params/act is .*; only arrays and"),
        ((3, {"name": "lenet"}), {}, "state at name is 'lenet'"),
        ((3, {"x": np.array([None])}), {}, r"state at x is array\(\[None\], dtype=object\); only"),
        ((3, {"x": np.array(["a"])}), {}, "state at x is array"),
        ((3, {"x": 2**70}), {}, "state at x is 1180591620717411303424; only"),
        ((3, {}), {}, "state has no leaf with entries, there is nothing to save"),
        ((3, {"empty": jnp.zeros(0)}), {}, "state has no leaf with entries"),
        ((3, jax.eval_shape(small)), {}, "state at key is ShapeDtypeStruct.*, only a shape; make"),
    ],
)
def test_what_cannot_be_saved(arguments, options, message, tmp_path):
    save_checkpoint(tmp_path, 2, small())
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, *arguments, **options)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (small(size=(4, 2)), r"/2 at (masks|params)/kernel has shape \(4, 3\), .* has \(4, 2\)"),
        (small() | {"step": 1}, "/2 has no leaf step, which the state at hand has"),
        ({"key": small()["key"]}, "/2 has a leaf masks/kernel, which the state at hand lacks"),
        (small() | {"key": jax.random.key(0, impl="rbg")}, "at key has dtype key<fry>, .* key<rbg"),
        (
            small() | {"params": {"kernel": jnp.ones((4, 3), jnp.bfloat16)}},
            "params/kernel has dtype float32, the state at hand has bfloat16",
        ),
    ],
)
def test_a_checkpoint_of_another_state_is_refused_and_left_alone(other, message, tmp_path):
    save_checkpoint(tmp_path, 1, small())
    save_checkpoint(tmp_path, 2, small())
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message + ".*; another model or optimizer saved it"):
        restore_checkpoint(tmp_path, other)
    assert content(tmp_path) == before


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, garble, zero, delete])
def test_damage_to_any_file_is_harmless_or_found(damage, tmp_path):
    whole = tmp_path / "whole"
    for n in (1, 2):
        save_checkpoint(whole, n, small(n, size=(50, 40)), extras={"n": n})
    fallen_back = []
    for path in sorted(p for p in (whole / "2").rglob("*") if p.is_file()):
        folder = tmp_path / "folder"
        shutil.copytree(whole, folder)
        damage(folder / path.relative_to(whole))
        damaged = content(folder / "2")
        restored = restore_checkpoint(folder, small(size=(50, 40)))
        assert bits(restored.state) == bits(small(restored.step, size=(50, 40)))
        assert restored.extras == {"n": restored.step}
        if restored.step == 1:
            fallen_back.append(path.name)
            assert restored.note.startswith("checkpoint 2 cannot be read (")
            assert restored.note.endswith(f"and is now {folder}/damaged-2")
            assert len(restored.note.splitlines()) == 1
            assert content(folder / "damaged-2") == damaged
        shutil.rmtree(folder)
    # The contents, and the arrays with what leads to them; the rest are Orbax's own notes.
    assert len(fallen_back) >= 4


def test_a_damaged_checkpoint_is_kept_and_its_step_saved_again(tmp_path):
    for again in ("", "-again", "-again-again"):
        for n in (1, 2):
            if not (tmp_path / str(n)).exists():
                save_checkpoint(tmp_path, n, small(n))
        cut(tmp_path / "2" / "contents" / "metadata")
        assert restore_checkpoint(tmp_path, small()).step == 1
        assert (tmp_path / f"damaged-2{again}").is_dir()


def test_nothing_is_touched_where_all_are_damaged(tmp_path):
    for n in (1, 2):
        save_checkpoint(tmp_path, n, small(n))
        cut(tmp_path / str(n) / "contents" / "metadata")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path} can be read, 2 not because"):
        restore_checkpoint(tmp_path, small())
    with pytest.raises(ValueError, match="2 cannot give masks"):
        restore_masks(tmp_path)
    assert content(tmp_path) == before


def test_steps_may_be_integers_of_numpy_and_jax(tmp_path):
    save_checkpoint(tmp_path, np.int64(1), small(1))
    save_checkpoint(tmp_path, jnp.int32(2), small(2))
    assert restore_checkpoint(tmp_path, small()).step == 2
    chex.assert_trees_all_equal(restore_masks(tmp_path, np.int32(1)), small(1)["masks"])


def test_shapes_are_no_state_to_restore_into(tmp_path):
    save_checkpoint(tmp_path, 1, small())
    with pytest.raises(ValueError, match="at key is ShapeDtypeStruct.*, only a shape; make [^;]*$"):
        restore_checkpoint(tmp_path, jax.eval_shape(small))


def foreign(path):
    """A checkpoint as Orbax's own users write it: one item, a Composite, or no manager at all."""
    arrays = small()["params"]
    with ocp.CheckpointManager(path) as manager:
        manager.save(5, args=ocp.args.StandardSave(arrays))


def foreign_items(path):
    with ocp.CheckpointManager(path) as manager:
        manager.save(5, args=ocp.args.Composite(model=ocp.args.StandardSave(small()["params"])))


def foreign_tree(path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "5", small()["params"])


def foreign_file(path):
    (path / "5").mkdir()
    (path / "5" / "mine.txt").write_text("mine")


@pytest.mark.parametrize("write", [foreign, foreign_items, foreign_tree, foreign_file])
def test_a_checkpoint_of_another_program_is_neither_damaged_nor_deleted(write, tmp_path):
    save_checkpoint(tmp_path, 1, small())
    write(tmp_path)
    before = content(tmp_path)
    for use in (
        lambda: restore_checkpoint(tmp_path, small()),
        lambda: restore_masks(tmp_path, 1),
        lambda: save_checkpoint(tmp_path, 6, small(), keep=1),  # Orbax would delete the older ones
    ):
        with pytest.raises(ValueError, match="/5 was not written by jaxsparse; take another"):
            use()
        assert content(tmp_path) == before


def test_a_file_with_a_number_for_a_name_is_no_checkpoint(tmp_path):
    (tmp_path / "7").write_text("mine")
    assert restore_checkpoint(tmp_path, small()) is None
    for n in (1, 2, 8):
        save_checkpoint(tmp_path, n, small(n), keep=1)
        assert restore_checkpoint(tmp_path, small()).step == n
    assert (tmp_path / "7").read_text() == "mine"


def test_a_deletion_that_a_kill_cut_off_stops_nobody(tmp_path):
    for n in (1, 2):
        save_checkpoint(tmp_path, n, small(n))
    shutil.rmtree(tmp_path / "1" / "contents")
    assert restore_checkpoint(tmp_path, small()).step == 2
    save_checkpoint(tmp_path, 3, small(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize("part", ["arrays/manifest.ocdbt", "arrays/d/*", "arrays/_METADATA"])
def test_an_error_of_the_system_is_no_damage(part, tmp_path):
    for n in (1, 2):
        save_checkpoint(tmp_path, n, small(n))
    (path, *_) = sorted((tmp_path / "2").glob(part))
    whole = path.read_bytes()
    path.unlink()
    # What no rights of the user and no limit of the machine can open.
    (path.mkdir if part.endswith("_METADATA") else functools.partial(path.symlink_to, path))()
    reason = "Is a directory" if part.endswith("_METADATA") else "Too many levels of symbolic links"
    said = f"checkpoint {tmp_path}/2 could not be read: {reason}; it is as it was"
    for restore in (lambda: restore_checkpoint(tmp_path, small()), lambda: restore_masks(tmp_path)):
        with pytest.raises(OSError) as raised:
            restore()
        assert str(raised.value) == said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    path.rmdir() if part.endswith("_METADATA") else path.unlink()
    path.write_bytes(whole)
    assert bits(restore_checkpoint(tmp_path, small()).state) == bits(small(2))


def test_no_memory_is_no_damage():
    with pytest.raises(MemoryError):
        _raise_if_of_system(MemoryError(), "checkpoint 1")
    _raise_if_of_system(FileNotFoundError(2, "No such file or directory"), "checkpoint 1")


def test_operations_that_fail_are_silenced_once(tmp_path):
    """What they leave behind speaks up later, so the silence lasts; it must not grow."""
    save_checkpoint(tmp_path, 1, small())
    cut(tmp_path / "1" / "contents" / "metadata")
    silenced = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no checkpoint in"):
            restore_checkpoint(tmp_path, small())
        silenced.append((sys.unraisablehook, list(logging.getLogger("absl").filters)))
    assert silenced[0] == silenced[1] == silenced[2]


SAVER = """
import resource, sys
import jax.numpy as jnp
from jaxsparse.checkpoint import restore_checkpoint, save_checkpoint
folder, limit = sys.argv[1], int(sys.argv[2])
state = lambda n: {"masks": jnp.arange(20_000) % 7 < n % 7, "w": jnp.sin(n + jnp.arange(20_000.0))}
restored = restore_checkpoint(folder, state(0))
n = 0 if restored is None else restored.step
if n:
    assert (restored.state["w"] == state(n)["w"]).all(), "wrong values"
    assert restored.note is None, restored.note
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print(n, flush=True)
while True:
    n += 1
    save_checkpoint(folder, n, state(n))
    print(n, flush=True)
"""


def saver(folder, limit=0):
    command = [sys.executable, "-c", SAVER, str(folder), str(limit)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.processes
@pytest.mark.slow
def test_killed_in_the_middle_of_saving(tmp_path):
    """The time after the last line is that of a save at its beginning, its middle, its end."""
    saved = 0
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05):
        with saver(tmp_path) as run:
            lines = [int(run.stdout.readline()) for _ in range(3)]
            time.sleep(delay)
            run.send_signal(signal.SIGKILL)
            lines += map(int, run.stdout.read().split())
        assert lines[0] >= saved  # it went on from the last that was whole
        saved = lines[-1]
    with saver(tmp_path) as run:
        assert int(run.stdout.readline()) >= saved
        run.kill()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("limit", [20, 3_000, 30_000])
def test_a_disk_that_fills_is_one_error_and_loses_nothing(limit, tmp_path):
    save_checkpoint(
        tmp_path, 1, {"masks": jnp.arange(20_000) % 7 < 1, "w": jnp.sin(1 + jnp.arange(20_000.0))}
    )
    before = content(tmp_path)
    with saver(tmp_path, limit) as run:
        _, complaint = run.communicate(timeout=60)
    assert run.returncode == 1
    reason = f"OSError: checkpoint {tmp_path}/2 could not be saved: File too large; earlier ones"
    # Not always the last line: Python may complain of a destructor as it shuts down.
    assert any(line.startswith(reason) for line in complaint.splitlines()), complaint
    assert content(tmp_path) == before
