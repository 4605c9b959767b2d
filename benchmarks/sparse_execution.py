"""Training steps and inference by active weights, against dense ones, on this machine.

    python benchmarks/sparse_execution.py --model=resnet20 --batch=128 --sparsity=0.99
    python benchmarks/sparse_execution.py --model=resnet20,resnet34 --batch=128,1 \
--sparsity=0.9,0.95,0.99,0.999 --torch=PYTHON --json results.json

A step is forward, backward, and SGD with momentum and weight decay. All forms run in one process
with the same setting of the allocator. *dense* is masked training in XLA. *sparse* is our network
with the chosen form of each layer. *stock* is the network without changes, with its layers executed
by active weights. The forms are sampled in turn, and dense twice a round: the second one is the
control, whose ratio to the first shows the noise. Numbers are medians [quartiles] of samples that
no other process disturbed; "?" marks a number without such samples.

--torch names a Python that has PyTorch, and maybe ONNX Runtime. It times the dense networks of
these on the same machine, in a process of its own. `--json -` prints a line of JSON at the end.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import memory_traffic, quiet
from benchmarks.sparse_forms import MODELS, Network, Program
from jaxsparse.sparse import BreakEven, backend, break_even, keep_memory, measured_break_even
from jaxsparse.sparse.allocator import ENVIRONMENT

ROOT = Path(__file__).parents[1]
BREAK_EVENS: dict[str, BreakEven] = {
    "fit": break_even,
    "measured": measured_break_even,
    "always": lambda layer, train: 1.0,  # all layers by active weights, even if dense is faster
}
MOST_DIFFERENT = 1e-3  # relative to the largest number, after two training steps
SPEED = (
    "| network | batch | sparsity | | dense ms | sparse ms | faster | stock ms | faster | control "
    "| PyTorch ms | ONNX ms |"
)
COST = (
    "| network | batch | sparsity | | memory MB dense, sparse, stock | optimizer MB dense, sparse "
    "| compile s dense, sparse, stock | traffic MB | its ms | sparse / that "
    "| differs by, sparse, stock |"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints two tables."""
    args = _arguments(argv)
    kept = args.allocator == "keep" and keep_memory()  # before anything is computed
    machine = {
        "machine": f"{_processor()}, {os.cpu_count()} CPU cores",
        "backend": " ".join(backend()),
        "device": jax.devices()[0].device_kind,
        "allocator": "keep_memory" if kept else "default",
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "python": platform.python_version(),
        "rounds": args.rounds,
        "break_even": args.break_even,
    }
    print("; ".join(f"{name} {value}" for name, value in machine.items()))
    speed = memory_traffic.bandwidth(rounds=args.rounds, retries=args.retries)
    machine["bandwidth_gb_s"] = speed.median / 1e6
    print(f"memory, read and written: {speed.median / 1e6:.1f} GB/s\n")
    print(_head(SPEED), flush=True)
    rows = []
    for row in _rows(args, speed):
        rows.append(row)
        for what in ("train", "infer"):
            print(_speed_line(row, what), flush=True)
    print(f"\n{_head(COST)}")
    for row in rows:
        for what in ("train", "infer"):
            print(_cost_line(row, what))
    if args.json:
        found = {**machine, **(_flat(rows[0]) if len(rows) == 1 else {})}
        if len(rows) > 1:
            found["results"] = [_flat(row) for row in rows]
        line = json.dumps(found)
        if args.json == "-":
            print(line)
        else:
            Path(args.json).write_text(f"{line}\n", "utf-8")


def _rows(args: argparse.Namespace, speed: quiet.Spread) -> Iterator[dict[str, Any]]:
    """Yields the measurements of each network, batch and sparsity."""
    for name in args.model:
        for batch in args.batch:
            others = _torch(args, name, batch) if args.torch else {}
            for sparsity in args.sparsity:
                row = {"model": name, "batch": batch, "sparsity": sparsity, **others}
                network = Network(MODELS[name], batch, sparsity)
                for train in (True, False):
                    row.update(_measure(network, train, args, speed))
                yield row


def _measure(
    network: Network, train: bool, args: argparse.Namespace, speed: quiet.Spread
) -> dict[str, Any]:
    """Times the three forms of a step, or of inference; the names are those of the JSON."""
    what = "train" if train else "infer"
    forms = network.forms(train, BREAK_EVENS[args.break_even])
    make = network.training if train else network.inference
    programs: dict[str, Program] = {name: make(form) for name, form in forms.items()}
    found: dict[str, Any] = {}
    results = {}
    for name, program in programs.items():
        for _ in range(2):  # the second loss depends on the gradients too
            program.run()
        results[name] = program.result()
    # The results must agree: a program that leaves work out would be fast.
    scale = np.abs(results["dense"]).max()
    for name in ("sparse", "stock"):
        differs = float(np.abs(results[name] - results["dense"]).max() / scale)
        if not differs < MOST_DIFFERENT:
            raise SystemExit(f"error: {what}, {name}, differs from dense by {differs:.1e}")
        found[f"{_prefix(name)}{what}_difference"] = differs
    runs = {name: program.run for name, program in programs.items()}
    runs["control"] = runs["dense"]
    samples = quiet.in_turn(runs, rounds=args.rounds, retries=args.retries)
    for name, program in programs.items():
        start = f"{_prefix(name)}{what}"
        found[f"{start}_ms"] = quiet.milliseconds(samples[name])
        found[f"{start}_temp_bytes"] = program.temp_bytes
        found[f"{start}_compile_s"] = program.compile_seconds
        if name != "dense":
            found[f"{start}_speedup"] = quiet.ratio(samples["dense"], samples[name])
            found[f"{start}_sparse_layers"] = len(forms[name].positions)
        if train:
            found[f"{_prefix(name)}optimizer_bytes"] = program.optimizer_bytes
    found[f"{what}_control"] = quiet.ratio(samples["control"], samples["dense"])
    traffic = memory_traffic.step_bytes(forms["sparse"].layers, train=train)
    found[f"{what}_traffic_bytes"] = traffic
    found[f"{what}_traffic_ms"] = traffic / speed.median
    found[f"{what}_over_traffic"] = found[f"{what}_ms"].median / found[f"{what}_traffic_ms"]
    return found


def _prefix(name: str) -> str:
    return "" if name == "sparse" else f"{name}_"


def _torch(args: argparse.Namespace, name: str, batch: int) -> dict[str, Any]:
    """The dense networks of PyTorch and ONNX Runtime, in a process of their own."""
    command = [args.torch, "-m", "benchmarks.torch_dense", f"--model={name}", f"--batch={batch}"]
    command += [f"--rounds={args.rounds}", f"--retries={args.retries}"]
    command.append(f"--threads={os.cpu_count()}")
    environment = {**os.environ, **(ENVIRONMENT if args.allocator == "keep" else {})}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"--torch={args.torch} failed: {' '.join(command)}")
    found = json.loads(done.stdout.splitlines()[-1])
    spread = lambda value: quiet.Spread(*value) if isinstance(value, list) else value
    return {name: spread(value) for name, value in found.items()}


def _speed_line(row: dict[str, Any], what: str) -> str:
    shown = [f"dense_{what}_ms", f"{what}_ms", f"{what}_speedup", f"stock_{what}_ms"]
    shown += [f"stock_{what}_speedup", f"{what}_control", f"torch_{what}_ms", f"onnx_{what}_ms"]
    return _line(row, what, [str(row.get(name) or "-") for name in shown])


def _cost_line(row: dict[str, Any], what: str) -> str:
    starts = [f"{prefix}{what}" for prefix in ("dense_", "", "stock_")]
    memory = ", ".join(f"{row[f'{start}_temp_bytes'] / 1e6:.1f}" for start in starts)
    states = [row[f"{prefix}optimizer_bytes"] / 1e6 for prefix in ("dense_", "")]
    optimizer = ", ".join(f"{size:.3f}" for size in states) if what == "train" else "-"
    compiling = ", ".join(f"{row[f'{start}_compile_s']:.1f}" for start in starts)
    traffic = [f"{row[f'{what}_traffic_bytes'] / 1e6:.1f}", f"{row[f'{what}_traffic_ms']:.2f}"]
    over = f"{row[f'{what}_over_traffic']:.2f}"
    differs = ", ".join(f"{row[f'{prefix}{what}_difference']:.0e}" for prefix in ("", "stock_"))
    return _line(row, what, [memory, optimizer, compiling, *traffic, over, differs])


def _line(row: dict[str, Any], what: str, cells: Sequence[str]) -> str:
    first = [row["model"], str(row["batch"]), f"{100 * row['sparsity']:g} %", what]
    return f"| {' | '.join([*first, *cells])} |"


def _head(titles: str) -> str:
    return f"{titles}\n|{'---|' * (titles.count('|') - 1)}"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Medians under their names, with quartiles and the number of quiet samples beside them."""
    flat = {}
    for name, value in row.items():
        if isinstance(value, quiet.Spread):
            flat[name] = value.median
            flat[f"{name}_quartiles"] = [value.low, value.high]
            flat[f"{name}_quiet"] = value.num_quiet
        else:
            flat[name] = value
    return flat


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20", type=_models, help=", ".join(MODELS))
    parser.add_argument("--batch", default="128", type=_numbers(int, 1, 2**31))
    parser.add_argument("--sparsity", default="0.99", type=_numbers(float, 0.0, 1.0))
    parser.add_argument("--rounds", default=7, type=int, help="samples of each program")
    parser.add_argument("--retries", default=3, type=int, help="of a sample that was disturbed")
    parser.add_argument("--allocator", default="keep", choices=("keep", "default"))
    parser.add_argument("--break-even", default="fit", choices=BREAK_EVENS, help="of each layer")
    parser.add_argument("--torch", metavar="PYTHON", help="that has PyTorch")
    parser.add_argument("--json", metavar="FILE", help="or - for the last line")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds} must be at least 1")
    return args


def _models(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} must be one of {', '.join(MODELS)}")
    return names


def _numbers(kind: Any, low: float, high: float) -> Any:
    def parse(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",")]
        if outside := [value for value in values if not low <= value < high]:
            raise argparse.ArgumentTypeError(f"{outside[0]} must be in [{low}, {high})")
        return values

    parse.__name__ = kind.__name__
    return parse


if __name__ == "__main__":
    main()
