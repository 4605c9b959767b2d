"""Inference of whole networks by active weights: the engine against dense engines, on this machine.

    python -m benchmarks.inference --model=resnet20,resnet34 --batch=1,8,128 \
        --sparsity=0.9,0.95,0.99,0.999 --threads=1,2 --torch=PYTHON

*ONNX Runtime* is dense, at its best settings and with as many threads as the engine; *XLA* and
*PyTorch* (its ResNets alone) are dense too, and use all cores. *today* is inference by active
weights in XLA's programs (`choose_forms`). All but PyTorch run in one process and are sampled in
turn; numbers are medians [quartiles] of samples that no other process disturbed, and "?" marks a
number without any. The limit is the network's active multiply-adds at the kernel's best rate, which
is measured first, on all threads. Networks have made-up weights, and random masks with ERK's
densities or SynFlow's, by which all weights are on paths from image to logit.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxsparse
from benchmarks import inference_engines as engines
from benchmarks import quiet, timing
from jaxsparse.paths import leaves_by_path

ROOT = Path(__file__).parents[1]
MOST_DIFFERENT = 1e-4  # of the largest output
HEAD = (
    "| network | batch | sparsity | threads | XLA ms | PyTorch ms | ONNX Runtime ms | today ms "
    "| engine ms | ONNX Runtime / engine | today / engine | limit ms | engine / limit |"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, row by row."""
    args = _arguments(argv)
    rate = engines.best_rate(args.rounds)
    print(timing.machine())
    print(f"the kernel's best rate: {rate / 1e9:.1f} G multiply-adds a second and core\n")
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    for name in args.model:
        for batch in args.batch:
            has_torch = args.torch and name.startswith("resnet")
            torch = _torch(args, name, batch) if has_torch else {}
            for row in _rows(args, name, batch, rate):
                print("| " + " | ".join(_cells(row, torch)) + " |", flush=True)


def _rows(args: argparse.Namespace, name: str, batch: int, rate: float) -> Iterator[dict[str, Any]]:
    """Yields the times of a network at a batch: every sparsity and number of threads."""
    for sparsity in args.sparsity:
        net = engines.network(name, sparsity, args.masks)
        images = net.images(batch)
        limit = 1e3 * batch * _active_macs(net) / rate
        for threads in args.threads:
            compiled = engines.engine(net, threads)
            runs = {
                "xla": engines.xla(net, images),
                "today": engines.active_form(net, images),
                "engine": functools.partial(compiled, images),
            }
            _check(runs)
            if args.onnx:
                model = engines.onnx_bytes(name)
                runs["onnx"] = engines.onnx_runtime(model, images, threads)
            samples = quiet.in_turn(runs, rounds=args.rounds, retries=args.retries)
            yield {
                "row": (name, str(batch), f"{100 * sparsity:g} %", str(threads)),
                "limit": limit / threads,
                "over": quiet.milliseconds(samples["engine"]).median / limit * threads,
                "today_ratio": quiet.ratio(samples["today"], samples["engine"]),
                **(
                    {"onnx_ratio": quiet.ratio(samples["onnx"], samples["engine"])}
                    if args.onnx
                    else {}
                ),
                **{run: quiet.milliseconds(found) for run, found in samples.items()},
            }


def _active_macs(net: engines.Network) -> float:
    """Active multiply-adds of an image, padding with zeros included."""
    dense = jaxsparse.layer_flops(net.model.apply, net.variables, net.images(1))
    leaves = leaves_by_path(net.variables)
    densities = {path: float(np.mean(np.asarray(leaves[path]) != 0)) for path in dense}
    return jaxsparse.sparse_flops(dense, densities) / 2


def _check(runs: dict[str, Any]) -> None:
    """An engine that leaves work out would be fast."""
    wanted = runs["xla"]()
    for name, run in runs.items():
        differs = np.abs(run() - wanted).max() / np.abs(wanted).max()
        if not differs < MOST_DIFFERENT:
            sys.exit(f"error: {name} differs from XLA by {differs:.1e} of the largest output")


def _cells(row: dict[str, Any], torch: dict[str, Any]) -> list[str]:
    text = lambda name: str(row[name]) if name in row else "-"
    pytorch = torch.get("torch_infer_ms")
    return [
        *row["row"],
        text("xla"),
        str(quiet.Spread(*pytorch)) if pytorch else "-",
        text("onnx"),
        text("today"),
        text("engine"),
        text("onnx_ratio"),
        text("today_ratio"),
        f"{row['limit']:.3g}",
        f"{row['over']:.2f}",
    ]


def _torch(args: argparse.Namespace, name: str, batch: int) -> dict[str, Any]:
    """PyTorch's dense network, in a process of its own."""
    command = [args.torch, "-m", "benchmarks.torch_dense", f"--model={name}", f"--batch={batch}"]
    command += [f"--rounds={args.rounds}", f"--retries={args.retries}", "--inference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: --torch={args.torch}: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser.add_argument("--model", type=listed(_model), default=["resnet20"])
    parser.add_argument("--batch", type=listed(int), default=[1])
    parser.add_argument("--sparsity", type=listed(float), default=[0.9, 0.99])
    parser.add_argument("--threads", type=listed(int), default=[1, 2])
    parser.add_argument("--masks", choices=("erk", "synflow"), default="erk")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--torch", help="a Python that has PyTorch")
    parser.add_argument("--no_onnx", dest="onnx", action="store_false", help="no ONNX Runtime")
    return parser.parse_args(argv)


def _model(name: str) -> str:
    if name not in engines.MODELS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(engines.MODELS)}")
    return name


if __name__ == "__main__":
    main()
