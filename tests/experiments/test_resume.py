"""Real processes, killed, out of disk, robbed of a checkpoint, end as the straight run does."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import fashion_mnist
from experiments.options import cli
from experiments.records.run_folder import read_metrics
from jaxsparse.checkpoint import restore_masks, save_checkpoint
from tests.checkpoint.states import bits

ROOT = Path(__file__).parent.parent.parent
# Large batches, so that there is time to kill within the steps between an event and a checkpoint.
COMMAND = (
    "experiments/fashion_mnist.py --model=lenet_300_100 --schedule=snfs --sparsity=0.9 --steps=120 "
    "--update_interval=10 --eval_every=30 --checkpoint_every=40 --batch_size=1024"
).split()


def begin(out, limit="unlimited"):
    """Starts the command, with a limit on the size of files in KiB that a shell sets."""
    # The first run compiles for all.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = shlex.join([sys.executable, *COMMAND, f"--out={out}"])
    return subprocess.Popen(
        ["bash", "-c", f"ulimit -f {limit}; exec {command}"],
        cwd=ROOT,
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(out, moment):
    """Runs the command until `moment()` is true, and kills it."""
    with begin(out) as run:
        while not moment():
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.001)
        run.kill()


def steps(out):
    path = out / "metrics.jsonl"
    return [record["step"] for record in read_metrics(out)] if path.exists() else []


def checkpoints(out):
    return sorted(
        (p.name for p in (out / "checkpoints").glob("*")), key=lambda name: (len(name), name)
    )


def files(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def outcome(out):
    """All that a run leaves and that tells neither the time nor the process."""
    summary = json.loads((out / "summary.json").read_text())
    contents = json.loads((out / "checkpoints" / "120" / "contents" / "metadata").read_text())
    del summary["steps_per_second"], summary["peak_memory_mib"], contents["extras"]["seconds"]
    return (
        summary,
        contents,
        bits(restore_masks(out / "checkpoints")),
        (out / "metrics.jsonl").read_text(),
    )


@pytest.mark.processes
@pytest.mark.slow
def test_what_happens_to_a_run_does_not_change_what_comes_out(tmp_path):
    straight, out = tmp_path / "straight", tmp_path / "run"
    with begin(straight) as run:
        printed, complaint = run.communicate()
    assert run.returncode == 0, complaint
    assert "continuing" not in printed
    assert checkpoints(straight) == ["120"]  # the trained model

    kill_when(out, lambda: 10 in steps(out))  # before there is any checkpoint
    assert checkpoints(out) == []
    kill_when(out, lambda: 50 in steps(out))  # after an event, before its checkpoint
    assert checkpoints(out) == ["40"] and max(steps(out)) >= 50

    with begin(out, limit=200) as run:
        printed, complaint = run.communicate()
    assert run.returncode == 2
    assert printed == "continuing at step 40\n"
    assert complaint.splitlines()[-1] == (
        f"error: checkpoint {out}/checkpoints/80 could not be saved: File too large; "
        f"earlier ones are as they were"
    )
    assert checkpoints(out) == ["40"] and steps(out)[-1] == 80

    kill_when(out, lambda: any("tmp" in name for name in checkpoints(out)))  # while it saves
    assert checkpoints(out)[0] == "40" and steps(out)[-1] == 80
    kill_when(out, lambda: 100 in steps(out))
    assert checkpoints(out) == ["40", "80"]
    (out / "checkpoints" / "80" / "arrays" / "manifest.ocdbt").unlink()

    with begin(out) as run:
        assert run.stdout.readline().startswith("checkpoint 80 cannot be read (")
        assert run.stdout.readline() == "continuing at step 40\n"
        while "120" not in checkpoints(out):
            time.sleep(0.001)
        run.kill()  # with nothing left to do but the summary
    assert not (out / "summary.json").exists()

    with begin(out) as run:
        printed, complaint = run.communicate()
    assert run.returncode == 0, complaint
    assert printed.splitlines()[0] == "continuing at step 120"
    # It was killed so early that the checkpoints before the last may still be there.
    assert set(checkpoints(out)) >= {"120", "damaged-80"}
    for ours, theirs in zip(outcome(out), outcome(straight), strict=True):
        assert ours == theirs
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", 10, {"state": {"params": jnp.ones(3)}})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    config = fashion_mnist.Config(model="lenet_300_100", out=tmp_path, steps=60)
    (tmp_path / "config.json").write_text(json.dumps(cli.as_dict(config), default=str))
    before = files(tmp_path)
    with pytest.raises(ValueError, match="checkpoints/10 has no leaf best/params/.*another model"):
        fashion_mnist.train(config)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, "metrics.jsonl has no record of step 0, without which .* cannot go on from step 10"),
        ('{"step": 5}\n', "metrics.jsonl has no record of step 0"),
        ('{"step": 0}\nnonsense\n', "metrics.jsonl cannot be read: Expecting value"),
    ],
)
def test_without_its_records_a_run_does_not_go_on(metrics, message, tmp_path):
    config = fashion_mnist.Config(
        model="lenet_300_100", schedule="dense", out=tmp_path, steps=20, checkpoint_every=10
    )
    fashion_mnist.train(config)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "checkpoints" / "20").rename(tmp_path / "checkpoints" / "10")
    (tmp_path / "metrics.jsonl").unlink()
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_text(metrics)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        fashion_mnist.train(config)
    assert files(tmp_path) == before
