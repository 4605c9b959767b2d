"""Saving in the background: the step may donate the state, and errors come with the next call."""

import errno
import json
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.checkpoint import (
    restore_checkpoint,
    restore_part,
    save_checkpoint,
    wait_for_checkpoint,
)
from jaxsparse.checkpoint import save as saving
from jaxsparse.flat_state import flatten
from tests.checkpoint.states import bits, small
from tests.checkpoint.test_restore import sharded

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("place", [lambda tree: tree, sharded])
def test_a_step_may_donate_what_is_being_written(place, tmp_path):
    double = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    x = place({"x": jnp.arange(2.0**19)})["x"]
    expected = np.asarray(jnp.arange(2.0**19))
    for n in range(1, 4):
        save_checkpoint(tmp_path, n, {"x": x}, wait=False, keep=3)
        for _ in range(8):
            x = double(x)
        x.block_until_ready()
    wait_for_checkpoint(tmp_path)
    for n in range(1, 4):
        np.testing.assert_array_equal(restore_part(tmp_path, "x", n), expected)
        for _ in range(8):
            expected = expected * 2 + 1


def test_other_calls_wait_for_it(tmp_path):
    save_checkpoint(tmp_path, 1, small(1), wait=False)
    assert restore_checkpoint(tmp_path, small()).step == 1
    save_checkpoint(tmp_path, 2, small(2), wait=False)
    assert bits(restore_part(tmp_path, "params")) == bits(small(2)["params"])
    save_checkpoint(tmp_path, 3, small(3), wait=False)
    with pytest.raises(ValueError, match="step 3 must be above 3"):
        save_checkpoint(tmp_path, 3, small(3))
    wait_for_checkpoint(tmp_path)
    wait_for_checkpoint(tmp_path / "another")  # where there is nothing to wait for


def test_an_error_in_the_background_comes_with_the_next_call_once(tmp_path, monkeypatch):
    write = saving.write

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def on_a_full_disk(folder, step, *args, **options):
        return full if step == 2 else write(folder, step, *args, **options)

    monkeypatch.setattr(saving, "write", on_a_full_disk)
    save_checkpoint(tmp_path, 1, small(1))
    save_checkpoint(tmp_path, 2, small(2), wait=False)
    with pytest.raises(OSError, match="/2 could not be saved: .*; earlier ones are as they were"):
        save_checkpoint(tmp_path, 3, small(3))
    save_checkpoint(tmp_path, 3, small(3))
    assert bits(restore_checkpoint(tmp_path, small()).state) == bits(small(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


ENDS = """
import sys, jax.numpy as jnp
from jaxsparse.checkpoint import save_checkpoint
save_checkpoint(sys.argv[1], 1, {"x": jnp.arange(1000.0)}, wait=False)
"""


@pytest.mark.processes
def test_a_program_that_ends_without_waiting_loses_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", ENDS, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    assert restore_part(tmp_path, "x", 1)[-1] == 999.0


def test_checksums_of_earlier_versions_are_read_and_checked(tmp_path):
    """They were CRC-32 of whole leaves, in records of three entries."""
    state = sharded(small(1, size=(16, 3)))
    save_checkpoint(tmp_path, 1, state)
    path = tmp_path / "1" / "contents" / "metadata"
    contents = json.loads(path.read_text())
    for name, array in flatten(state)[0].items():
        crc = zlib.crc32(np.asarray(array).tobytes())
        contents["records"][name] = [*contents["records"][name][:2], crc]
    path.write_text(json.dumps(contents))
    back = restore_checkpoint(tmp_path, sharded(small(size=(16, 3)))).state
    assert bits(back) == bits(state)
    assert back["params"]["kernel"].sharding == state["params"]["kernel"].sharding
    contents["records"]["params/kernel"][2] ^= 1
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match="params/kernel has another checksum than when it was"):
        restore_checkpoint(tmp_path, small(size=(16, 3)))
