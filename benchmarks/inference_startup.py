"""From a file to the first answer: the engine and ONNX Runtime, in fresh processes without JAX.

    python -m benchmarks.inference_startup --model=resnet20,resnet34 --sparsity=0.9,0.99

The time is from the call that loads the file to the first logits of one image; importing the
runtime is timed apart. Memory is what the process holds more than before that call. Files are
in the page cache. Medians [quartiles] of `--rounds` processes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import inference_engines as engines
from benchmarks import timing
from jaxsparse.kernels.build import engine_library
from jaxsparse.sparse import save_engine

_START = """
import json, sys, time
import numpy as np
file, library, numbers = sys.argv[1:4]
image = np.random.default_rng(0).normal(size=json.loads(numbers)).astype(np.float32)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
start = time.perf_counter()
"""
_ENGINE = """
import ctypes
engine = ctypes.CDLL(library)
engine.jaxsparse_engine_open.restype = ctypes.c_void_p
engine.jaxsparse_engine_run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
imported, before = time.perf_counter(), resident()
opened = engine.jaxsparse_engine_open(file.encode(), 1)
logits = np.empty(10, np.float32)
pointers = [(ctypes.c_void_p * 1)(a.ctypes.data) for a in (image, logits)]
assert opened and engine.jaxsparse_engine_run(opened, *pointers, 1) == 0
"""
_ONNX = """
import onnxruntime as ort
imported, before = time.perf_counter(), resident()
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {session.get_inputs()[0].name: image})
"""
_END = """
answered = time.perf_counter()
times = [1e3 * (imported - start), 1e3 * (answered - imported)]
print(json.dumps([*times, (resident() - before) / 1e6]))
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser.add_argument("--model", type=listed(str), default=["resnet20", "resnet34"])
    parser.add_argument("--sparsity", type=listed(float), default=[0.9, 0.95, 0.99, 0.999])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    print(timing.machine())
    print("| network | runtime | file MB | import ms | load and first answer ms | memory MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.model:
            shape = json.dumps([1, *engines.MODELS[name][1]])
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(engines.onnx_bytes(name))
            _print_row(name, "ONNX Runtime, dense", path, _ONNX, shape, args.rounds)
            for sparsity in args.sparsity:
                for weights in ("float32", "bfloat16"):
                    path = Path(folder) / f"{name}-{sparsity}-{weights}.jse"
                    save_engine(path, engines.engine(engines.network(name, sparsity), 1, weights))
                    what = f"engine, {100 * sparsity:g} %, {weights}"
                    _print_row(name, what, path, _ENGINE, shape, args.rounds)


def _print_row(name: str, runtime: str, path: Path, script: str, shape: str, rounds: int) -> None:
    command = [sys.executable, "-c", _START + script + _END, path, engine_library(), shape]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds + 1)
    ][1:]
    cells = [f"{path.stat().st_size / 1e6:.3f}"]
    for numbers in np.array(runs).T.tolist():
        low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
        cells.append(f"{statistics.median(numbers):.2f} [{low:.2f}, {high:.2f}]")
    print(f"| {name} | {runtime} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
