"""Kills a short run at random moments until it is done, and compares it with the straight run.

    python tests/kill_runs.py --kills=20 --seed=0
    JAX_NUM_CPU_DEVICES=4 python tests/kill_runs.py --run=imagenet --kills=20

Every process is killed with `kill -9` after a random time of up to the length of the straight run,
imports, compilation, saving and drawing included; the same command then goes on. When a run comes
to its end before all kills are done, another one begins. The metrics, the summary but for its
timing, and the trained state with its masks must be equal to the bit.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "fashion_mnist": "experiments/fashion_mnist.py --model=lenet5 --sparsity=0.95 --steps=200",
    "imagenet": "tests/experiments/tiny_imagenet.py --fake_data --fsdp --sparsity=0.9 --steps=200",
}
FLAGS = "--schedule=granet_st --update_interval=10 --eval_every=50 --checkpoint_every=20"
TIMED = ("steps_per_second", "peak_memory_mib", "throughput", "out")  # in the summary, if at all
TIMED_RECORDS = ("images_per_second", "input_share")


def run(name, out, seconds=None):
    """Runs the command, for some seconds at most; returns whether it came to its end."""
    command = [sys.executable, *COMMANDS[name].split(), *FLAGS.split(), f"--out={out}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache")}
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | cache, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return False
    if process.returncode:
        sys.exit(complaint.decode())
    return True


def outcome(out):
    """All that a run leaves and that does not tell the time."""
    summary = json.loads((out / "summary.json").read_text())
    (last,) = (out / "checkpoints").glob("200/contents/metadata")
    contents = json.loads(last.read_text())  # with the checksum of every array
    del contents["extras"]["seconds"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    untimed = lambda values, timed: {k: x for k, x in values.items() if k not in timed}
    return untimed(summary, TIMED), contents, [untimed(r, TIMED_RECORDS) for r in records]


def newest(out):
    """The newest checkpoint, 0 before the first."""
    return max([0, *(int(p.name) for p in out.glob("checkpoints/*") if p.name.isdigit())])


def main(name, kills, seed):
    """Returns the number of runs that came out differently."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        run(name, straight)
        length = math.inf
        killed, ended, different, moments = 0, 0, 0, []
        while killed < kills or moments:
            out = Path(folder) / f"run{ended}"
            # The first is not killed: it measures the length, with caches that are filled now.
            seconds = rng.uniform(0, length) if ended and killed < kills else None
            started = time.monotonic()
            if not run(name, out, seconds):
                killed += 1
                moments.append(newest(out))
                if not (out / "summary.json").exists():  # else it was on its way out
                    continue
            elif not moments:
                length = min(length, time.monotonic() - started)
            different += outcome(out) != outcome(straight)
            print(f"killed after checkpoints {moments}, {different} different so far", flush=True)
            ended, moments = ended + 1, []
    return killed, ended, different


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=COMMANDS, default="fashion_mnist")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    killed, ended, different = main(flags.run, flags.kills, flags.seed)
    print(
        f"{killed} kills, seed {flags.seed}: {ended} runs came to their end, {different} different"
    )
    sys.exit(bool(different))
