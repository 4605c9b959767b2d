"""Damage, files of other programs, kills and full disks: told apart, and nothing is lost."""

import functools
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from jaxsparse.checkpoint import restore_checkpoint, restore_masks, save_checkpoint
from tests.checkpoint.states import bits, content, small

ROOT = Path(__file__).parent.parent.parent


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
    # The contents, the arrays and their index; the other files are Orbax's own notes.
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
    with pytest.raises(
        ValueError, match=f"no checkpoint in {tmp_path} can be read; 2 cannot because"
    ):
        restore_checkpoint(tmp_path, small())
    with pytest.raises(ValueError, match="2 cannot be read"):
        restore_masks(tmp_path)
    assert content(tmp_path) == before


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
    # Neither permissions nor limits of the machine can open this.
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


def test_operations_that_fail_are_silenced_once(tmp_path):
    """What they leave behind logs later, so the silence lasts; it must not be added repeatedly."""
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
    """A kill comes at the beginning, in the middle, or at the end of a save."""
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
    # It is not always the last line: Python may complain about a destructor at shutdown.
    assert any(line.startswith(reason) for line in complaint.splitlines()), complaint
    assert content(tmp_path) == before
