"""ResNet-50's convolutions on a GPU: by active weights in Pallas kernels, against dense ones.

    python -m benchmarks.gpu_convolution --seconds=80 --json=gpu.json

The batch is 256 images of 224 x 224, and active weights are drawn uniformly. All convolutions but
the first one (7 x 7 taps) are timed. *Sparse* is the kernel of `pallas_convolution` on images of
[channel, y, x, image]. *Dense* is `lax.conv_general_dilated` on images of [image, y, x, channel],
with a masked kernel. Dense float32 has JAX's default precision, which is TF32 on tensor cores from
Ampere on; sparse float32 is exact. In bfloat16 the images are bfloat16, and sums and sparse weights
are float32. The times do not include changes of layout, nor making the lists of active weights,
which change with the mask only.

Each row is a layer: milliseconds of a call, the speed-up of sparse over dense in the same dtype,
and the time relative to moving inputs and outputs alone at the measured speed of a copy. Training
moves
these: it reads the images twice, reads and writes the outputs' gradients once, and writes the
images' gradients. Programs that are too slow to compile are left out; those that fail or are wrong
get a line of their own. The most interesting rows come first, and the rows end with the time.

On a machine without a GPU it runs interpreted; try `--shrink=16 --only="3x3 64"`.
"""

import argparse
import concurrent.futures
import json
import os
import re
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import gpu_report, timing
from benchmarks.gpu_layers import Layer, num_active, resnet50, shrunk
from benchmarks.gpu_programs import (
    CALLS,
    Case,
    Time,
    compile_calls,
    compile_case,
    compile_errors,
    compile_images,
    draw_kernel,
    measure,
    run_once,
)
from benchmarks.gpu_report import DENSER, DTYPES, FIRST, SECOND
from benchmarks.pallas_convolution import Block

BLOCKS = {
    "float32": [
        Block(4, 128, 1, 4, 1),
        Block(1, 256, 1, 4, 1),
        Block(2, 256, 1, 2, 4),
        Block(4, 128, 16, 4, 1),
    ],
    "bfloat16": [
        Block(4, 256, 1, 4, 1),
        Block(1, 256, 1, 4, 1),
        Block(2, 256, 1, 2, 2),
        Block(2, 256, 16, 4, 1),
    ],
}
"""Blocks to try on a few layers: a thread loads 16 bytes at a time, and has 1 to 4 such vectors."""
TOLERANCE = {"float32": 3e-3, "bfloat16": 1.5e-2}
"""Limits of the relative error: several times that of TF32, and of results in bfloat16."""


class Bench:
    """Compiles programs on all cores, and times them alone on the device, until its time is up."""

    def __init__(self, seconds: float, batch: int, path: str):
        self.start, self.seconds, self.batch, self.path = time.monotonic(), seconds, batch, path
        self.interpret = jax.default_backend() == "cpu"
        self.pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
        self.programs: dict[Hashable, concurrent.futures.Future[Any]] = {}
        self.blocks: dict[Hashable, Block] = {}
        self.rows: list[dict[str, Any]] = []
        self.bandwidth = float("nan")  # until it is measured; ratios to it are then NaN too

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.start)

    def block(self, layer: Layer, dtype: str, sparsity: float) -> Block:
        """The block that was fastest on the most similar layer and sparsity."""
        nearest = max(sparsity, FIRST)
        return self.blocks.get((*_kind(layer), dtype, nearest), BLOCKS[dtype][0])

    def compile(
        self, wanted: Iterable[tuple[Hashable, Callable[..., Any], tuple[Any, ...]]]
    ) -> None:
        """Compiles the missing programs, and waits for them while time is left."""
        began = time.monotonic()
        for name, function, args in wanted:
            if name not in self.programs:
                self.programs[name] = self.pool.submit(function, *args)
        pending = [future for future in self.programs.values() if not future.done()]
        # Some time is left to time the programs that are ready by then.
        done, late = concurrent.futures.wait(pending, timeout=max(self.left - 5, 0))
        waited = time.monotonic() - began
        print(f"  ({len(done)} programs compiled in {waited:.1f} s, {self.left:.0f} s left)")
        if late:
            print(f"  {len(late)} still compile and disturb what follows", flush=True)

    def program(self, name: Hashable) -> Any:
        """Returns a compiled program, or raises the error of its compilation."""
        future = self.programs.get(name)
        if future is None or not future.done():
            raise TimeoutError("not compiled in time")
        return future.result()

    def attempt(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Returns the result; prints a line and returns None if it fails or the time is up."""
        if self.left < 1:
            return None
        try:
            return function(*args)
        except Exception as error:  # an error of one case must not end the others
            lines = str(error).strip().splitlines() or [""]
            print(f"  {what}: {type(error).__name__}: {lines[0][:200]}", flush=True)
            return None

    def save(self) -> None:
        """Writes the results so far."""
        if self.path:
            with open(self.path, "w") as file:
                head = {"machine": timing.machine(), "bandwidth": self.bandwidth}
                json.dump({**head, "batch": self.batch, "rows": self.rows}, file, indent=1)

    def measure_memory(self) -> None:
        """Measures the speed of a copy, and the time of a call that does almost nothing."""
        step = lambda weights, images, _: (images + weights[0],)
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        for size in (2**20 if self.interpret else 2**28, 128):
            program = compile_calls(step, array(1), array(size), None)
            taken, _ = measure(program, jnp.zeros(1), jnp.zeros(size), None, 0.05)
            if size > 128:
                self.bandwidth = 8 * size / taken.median
                print(f"a copy: {self.bandwidth / 1e9:.0f} GB/s, read and written", flush=True)
        print(f"an empty call: {1e6 * taken.median:.1f} us, in all the times below", flush=True)

    def tune(self, layers: Iterable[Layer]) -> None:
        """Finds the fastest block on one layer of each kind, forward, at two sparsities."""
        chosen = {_kind(layer): layer for layer in reversed(list(layers))}
        cases = [
            Case(layer, False, dtype, block, num_active(layer, FIRST))
            for layer in chosen.values()
            for dtype in DTYPES
            for block in BLOCKS[dtype]
        ]
        self.compile(
            [(("images", x), compile_images, (x, self.batch)) for x in chosen.values()]
            + [(case, compile_case, (case, self.batch, self.interpret)) for case in cases]
        )
        for kind, layer in chosen.items():
            images = self.attempt(f"{layer} images", self._images, layer)
            for dtype in DTYPES if images else ():
                tried = [case for case in cases if (case.layer, case.dtype) == (layer, dtype)]
                for sparsity in (FIRST, SECOND):
                    self._choose((*kind, dtype, sparsity), tried, sparsity, images[dtype][0])

    def _choose(
        self, name: Hashable, cases: Sequence[Case], sparsity: float, images: jax.Array
    ) -> None:
        times = {}
        for case in cases:
            what = f"{case.layer} {case.dtype} {tuple(case.block or ())}"
            if taken := self.attempt(what, self._time, case, sparsity, images):
                times[case.block] = taken.median
        if times:
            self.blocks[name] = best = min(times, key=lambda block: times[block])
            said = " ".join(f"{tuple(block)}: {1e3 * x:.3f}" for block, x in times.items())
            print(f"  {name}: {tuple(best)} of ms {said}", flush=True)

    def _images(self, layer: Layer) -> Any:
        return self.program(("images", layer))()

    def _time(self, case: Case, sparsity: float, images: jax.Array) -> Time:
        kernel = draw_kernel(case.layer, sparsity, case.capacity)
        return measure(self.program(case), kernel.values, images, kernel.lists, 0.02)[0]

    def phase(
        self, title: str, layers: dict[Layer, int], train: bool, sparsities: Sequence[float]
    ) -> None:
        """Compiles and times some layers, and prints a row for each."""
        if self.left < 6 or not layers:
            return
        print(f"\n{title}, {'forward and backward' if train else 'forward'}", flush=True)
        wanted = []
        for layer in layers:
            capacity = num_active(layer, min(sparsities))
            wanted.append((("images", layer), compile_images, (layer, self.batch)))
            for dtype in DTYPES:
                for sparsity in sparsities:
                    for case in self._cases(layer, train, dtype, sparsity, capacity):
                        wanted.append((case, compile_case, (case, self.batch, self.interpret)))
                errors = (layer, train, dtype, self.batch, capacity)
                wanted.append((("errors", *errors), compile_errors, errors))
        self.compile(wanted)
        print(gpu_report.head(sparsities), flush=True)
        for layer, count in layers.items():
            row = self.attempt(str(layer), self._row, layer, train, sparsities)
            if row:
                self.rows.append({**row, "count": count})
                self.save()

    def _cases(
        self, layer: Layer, train: bool, dtype: str, sparsity: float, capacity: int
    ) -> tuple[Case, Case]:
        """The dense case, which is the same for every sparsity, and the sparse one."""
        block = self.block(layer, dtype, sparsity)
        return Case(layer, train, dtype, None, 0), Case(layer, train, dtype, block, capacity)

    def _row(self, layer: Layer, train: bool, sparsities: Sequence[float]) -> dict[str, Any]:
        row: dict[str, Any] = {"layer": str(layer), "train": train, "times": {}, "errors": {}}
        row["limit"] = {
            dtype: gpu_report.least_bytes(layer, train, dtype, self.batch) / self.bandwidth
            for dtype in DTYPES
        }
        images = self._images(layer)
        capacity = num_active(layer, min(sparsities))
        for dtype in DTYPES:
            for sparsity in sparsities:
                cases = self._cases(layer, train, dtype, sparsity, capacity)
                what = f"{layer} {dtype} at {sparsity:.1%}"
                self.attempt(what, self._pair, row, cases, sparsity, images[dtype])
        print(gpu_report.line(row, sparsities), flush=True)
        return row

    def _pair(self, row: dict[str, Any], cases: Any, sparsity: float, images: Any) -> None:
        """Times the sparse form, and the dense one once. Their results must agree."""
        dense, sparse = cases
        kernel = draw_kernel(dense.layer, sparsity, sparse.capacity)
        args = (jnp.asarray(kernel.dense, dense.dtype), images[1], None)
        times, name = row["times"], f"dense {dense.dtype}"
        if name in times:
            expected = run_once(self.program(dense), *args)
        else:
            times[name], expected = measure(self.program(dense), *args, 0.05)
            # If the program asks for another layout, the images are transposed in every call.
            text = self.program(dense).run.as_text()
            row[name] = sorted(set(re.findall(r"dim_labels=([^, ]*)", text)))
        args = (kernel.values, images[0], kernel.lists)
        taken, found = measure(self.program(sparse), *args, 0.05)
        errors = self.program(
            ("errors", dense.layer, dense.train, dense.dtype, self.batch, sparse.capacity)
        )(found, expected, jnp.asarray(kernel.flat))
        row["errors"][f"{sparsity} {dense.dtype}"] = worst = float(errors.max())
        if not worst < TOLERANCE[dense.dtype]:  # NaN is wrong too
            raise ValueError(f"wrong by {errors}: not timed")
        times[f"{sparsity} {dense.dtype}"] = taken


def _kind(layer: Layer) -> tuple[int, bool]:
    """The kind of a layer; one block serves a kind: its taps, and whether it is large or small."""
    return layer.taps, layer.size > 14


def main() -> None:
    """Runs as much as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=80.0, help="after which it stops")
    parser.add_argument("--json", default="", help="file to write, row by row")
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--only", default="", help="layers whose name begins so")
    parser.add_argument("--shrink", type=int, default=1, help="divides layers and batch, for a try")
    arguments = parser.parse_args()
    layers = {
        shrunk(layer, arguments.shrink): count
        for layer, count in resnet50().items()
        if str(layer).startswith(arguments.only)
    }
    bench = Bench(arguments.seconds, arguments.batch // arguments.shrink, arguments.json)
    print(f"{timing.machine()}; batch {bench.batch}; medians of 3 to 9 rounds of {2 * CALLS} calls")
    print("spread: the largest of (upper - lower quartile) / median in a row", flush=True)
    bench.attempt("memory", bench.measure_memory)
    bench.tune(layers)
    by_taps = {taps: {x: n for x, n in layers.items() if x.taps == taps} for taps in (3, 1)}
    for taps, some in by_taps.items():
        for train in (False, True):
            bench.phase(f"{taps} x {taps} taps", some, train, (FIRST, SECOND))
    few = dict(list(by_taps[3].items())[::3])
    for train in (False, True):
        bench.phase("a denser network", few, train, (DENSER,))
    gpu_report.print_sums(bench.rows, sum(layers.values()))
    bench.save()
    bench.pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
