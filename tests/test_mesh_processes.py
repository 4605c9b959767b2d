"""A run on two processes of two devices each is the run on one device, to the bit.

Both processes train, save, restore, export and count a state of which neither holds the whole.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import jaxsparse
from jaxsparse.checkpoint import restore_checkpoint, restore_part, save_checkpoint
from tests import mesh_worker
from tests.mesh_worker import create, mesh_of, trained

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def alone():
    """The states after some steps on one device."""
    states, state, last = {}, create(mesh_of(1)), 0
    for n in (2, 6, 8, 10):
        state = trained(state, last + 1, n)
        states[n], last = jax.device_get(state.replace(key=jax.random.key_data(state.key))), n
    return states


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The findings of each of the two processes, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    save_checkpoint(folder / "start", 2, trained(create(mesh_of(8)), 1, 2))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, mesh_worker.__file__, rank, port, folder],
            cwd=Path(mesh_worker.__file__).parents[1],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    for stdout, stderr in outputs:
        assert stdout, stderr
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs], folder


@pytest.fixture(scope="module")
def found(both):
    first, second = both[0]
    raised = [first.pop("raised"), second.pop("raised")]
    assert first == second
    assert raised == [
        ["OSError: at 0", "KeyError: 'at 0'"],
        ["OSError: at 0", "RuntimeError: 'at 0'"],
    ]
    return first


def test_no_process_holds_the_state(found):
    assert found["shared"]
    assert found["shardings"] == ["P('data',)", "P()", "P(None, 'data')"]


def test_training_goes_on_from_eight_devices_to_the_bit(found, alone):
    for n in (6, 8):
        state = alone[n].replace(key=jax.random.wrap_key_data(alone[n].key))
        assert found[f"at {n}"] == int(jaxsparse.fingerprint(state))
    assert found["part"] == found["given"] == int(jaxsparse.fingerprint(alone[8].masks))


def test_counts_and_errors_name_what_they_name_on_one_device(found, alone):
    state = alone[10]
    assert found["summary"] == str(state.summary())
    with pytest.raises(ValueError) as raised:
        jaxsparse.check_pattern(state.masks, jaxsparse.n_of_m(1, 4))
    assert found["pattern"] == f"ValueError: {raised.value}"
    csr = jaxsparse.to_csr(state.params["a"]["kernel"], state.masks["a"]["kernel"])
    assert found["csr"] == csr.values.tolist()


def test_process_0_writes_the_file_and_both_report_it(found, both, alone):
    folder = both[1]
    params, masks = jaxsparse.load_safetensors(folder / "model.safetensors")
    chex.assert_trees_all_equal(params, alone[10].params)
    chex.assert_trees_all_equal(masks, alone[10].masks)
    report = jaxsparse.save_safetensors(folder / "mine", alone[10].params, alone[10].masks)
    assert found["report"] == str(report)
    assert (folder / "mine").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_set_aside_by_both(found):
    assert found["back"] == [8, found["at 8"]]
    assert found["note"].startswith("checkpoint 10 cannot be read (")
    assert found["note"].endswith("/two/damaged-10")
    assert found["left"] == ["6", "8", "damaged-10"]


def test_errors_are_those_of_one_process(found):
    assert found["again"].startswith(
        "ValueError: step 10 must be above 10, the newest checkpoint in"
    )
    assert (
        "/two/9 could not be saved: File too large; earlier ones are as they were" in found["full"]
    )
    assert found["decided"] == {"rank": 0}
    assert found["problems"] == ["ValueError('at 0')", "OSError('at 1')", None]


@pytest.mark.parametrize(
    ("devices", "fsdp"),
    [(1, False), pytest.param(8, False, marks=pytest.mark.variants), (8, True)],
)
def test_what_they_saved_comes_back_on_other_devices(devices, fsdp, both, found, alone, tmp_path):
    at_hand = create(mesh_of(devices), fsdp)
    back = restore_checkpoint(both[1] / "two", at_hand)
    assert back.step == 8 and back.extras == {}
    for new, old in zip(*map(jax.tree.leaves, (back.state, at_hand)), strict=True):
        assert new.sharding == old.sharding
    after = trained(back.state, 9, 10)
    chex.assert_trees_all_equal(jax.device_get(after.params), alone[10].params)
    assert restore_part(both[1] / "two", "params", 6)["a"]["kernel"].shape == (16, 12)
    np.testing.assert_array_equal(
        restore_part(both[1] / "two", "masks", 6, like=at_hand.masks)["a"]["kernel"],
        alone[6].masks["a"]["kernel"],
    )
