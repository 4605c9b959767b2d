"""Runs of the tiny network in processes of their own, which share a mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parents[1] / "tiny_imagenet.py")
FLAGS = "--fake_data --schedule=rigl --sparsity=0.8 --update_interval=4 --stop_step=12 --steps=16"
FLAGS += " --eval_every=8 --checkpoint_every=4"


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(out, *flags, num_processes=1, devices=2, only=None):
    """Starts a run; returns its processes, or only those of the numbers given."""
    together, port = [], free_port()
    for number in range(num_processes) if only is None else only:
        meeting = f"--coordinator=localhost:{port} --num_processes={num_processes}"
        meeting += f" --process_id={number} --heartbeat_timeout=10"
        argv = [*FLAGS.split(), f"--out={out}", *flags]
        argv += meeting.split() if num_processes > 1 else []
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *argv],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        together.append(process)
    return together


def ended(processes, timeout=300):
    """Waits for all; returns (exit status, stdout, stderr) of each."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


def outcome(out):
    """The summary and the records of a run, without times and the machine."""
    summary = json.loads((out / "summary.json").read_text())
    timed = ("steps_per_second", "peak_memory_mib", "throughput", "out")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    drop = ("images_per_second", "input_share")
    records = [
        {name: x for name, x in json.loads(line).items() if name not in drop} for line in lines
    ]
    return {name: x for name, x in summary.items() if name not in timed}, records
