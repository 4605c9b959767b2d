"""The time of each layer in dense engines; `benchmark_inference.py` prints it.

XLA's operations are those of the compiled program, in which several layers may be fused. ONNX
Runtime's are the nodes of its optimised graph. Both are medians over some calls while a profiler
runs, which slows them down: look at the shares.
"""

import glob
import gzip
import json
import os
import re
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

MOST = 25
"""Layers of a table, the longest ones."""


class Layer(NamedTuple):
    """An operation of an engine.

    Attributes:
      name: in the engine's own words.
      shape: of what it makes, as text; "" if the engine does not say.
      microseconds: of a call, median.
    """

    name: str
    shape: str
    microseconds: float


def of_xla(apply: Any, *inputs: Any, calls: int = 20) -> list[Layer]:
    """Returns the operations of a function's program, in the order in which they end.

    Args:
      apply: a jitted function.
      *inputs: of it.
      calls: over which medians are taken.
    """
    text = apply.lower(*inputs).compile().as_text()
    shapes = dict(re.findall(r"%?([\w.-]+) = \(?(\w+\[[\d,]*\])", text))
    jax.block_until_ready(apply(*inputs))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(apply(*inputs))
        (path,) = glob.glob(os.path.join(folder, "**", "*.trace.json.gz"), recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("ph") == "X" and event["name"] in shapes:
            times.setdefault(event["name"], []).append(event["dur"])
    return [Layer(name, shapes[name], statistics.median(found)) for name, found in times.items()]


def of_onnx_runtime(
    path: str | os.PathLike, feeds: dict[str, Any], threads: int, calls: int = 20
) -> list[Layer]:
    """Returns the nodes of a model, in order.

    Args:
      path: of the model.
      feeds: its inputs by name.
      threads: of a node.
      calls: over which medians are taken.
    """
    import onnxruntime  # pip install onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(calls + 1):
            session.run(None, feeds)
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    times: dict[str, list[float]] = {}
    about: dict[str, tuple[str, str]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") != "Node" or name == event["name"]:
            continue
        shapes = [str(s) for x in event["args"]["output_type_shape"] for s in x.values()]
        about[name] = (event["args"]["op_name"], ", ".join(shapes))
        times.setdefault(name, []).append(event["dur"])
    return [Layer(*about[name], statistics.median(found[1:])) for name, found in times.items()]


def rows(layers: Sequence[Layer]) -> list[list[str]]:
    """Returns a table of the longest layers, in their order, with a heading and a sum."""
    total = sum(layer.microseconds for layer in layers)
    least = sorted((layer.microseconds for layer in layers), reverse=True)[:MOST][-1:]
    shown = [layer for layer in layers if layer.microseconds >= least[0]][:MOST] if layers else []
    found = [["layer", "makes", "us", "share"]]
    for layer in shown:
        share = f"{100 * layer.microseconds / total:.1f} %" if total else ""
        found.append([layer.name, layer.shape, f"{layer.microseconds:.1f}", share])
    left = len(layers) - len(shown)
    if left:
        rest = total - sum(layer.microseconds for layer in shown)
        found.append([f"{left} others", "", f"{rest:.1f}", f"{100 * rest / total:.1f} %"])
    return [*found, ["in all", "", f"{total:.1f}", ""]]
