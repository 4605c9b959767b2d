"""Bytes that an event of ResNet-50 moves between devices, and memory of each device.

    python -m benchmarks.mesh_events

Nothing runs: the event is compiled for 1, 2, 4 and 8 devices, and its HLO is read. "Moved" is what
the collectives of one device take in, by kind. A collective within the loop of a search counts
once for every pass, with the number of passes that XLA knows; loops without a known number are
printed as such. Memory is what XLA plans for one device: arguments (params, gradients, masks),
results, and temporary arrays. The lower limit of memory beside the arguments is the new masks and
the masks of kept weights, one byte a weight each; the lower limit of moved bytes is one int32 for
every threshold, since each device must learn of all others' counts at least once.
"""

import argparse
import math
import os
import re
from collections import Counter
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse.nn import resnet
from jaxsparse.paths import prunable_paths
from jaxsparse.text_table import text_table

OPTIONS: dict[str, Any] = {"sparsity": 0.9, "total_steps": 1000, "update_interval": 100}
METHODS = {
    "gmp": jaxsparse.gmp(**OPTIONS),
    "rigl": jaxsparse.rigl(**OPTIONS),
    "granet": jaxsparse.granet(**OPTIONS),
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVE = re.compile(
    r"= (?P<result>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def shapes() -> Any:
    """The shapes of all params of ResNet-50."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return jax.eval_shape(resnet(50).init, jax.random.key(0), image)["params"]


def compiled(method: jaxsparse.Method, num_devices: int, fsdp: bool) -> Any:
    """The event of a method, compiled for params on a mesh: replicated, or cut as FSDP cuts them.

    FSDP cuts the longest axis that the devices divide.
    """
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(AxisType.Auto,))

    def placed(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
        axes = [i for i, n in enumerate(leaf.shape) if n % num_devices == 0]
        axis = max(axes, key=lambda i: leaf.shape[i], default=None) if fsdp else None
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda leaf: placed(leaf, jnp.float32), shapes())
    masks = jax.tree.map(lambda leaf: placed(leaf, jnp.bool_), shapes())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return jax.jit(method.update).lower(params, params, masks, step).compile()


def moved(text: str) -> tuple[Counter[str], int]:
    """Returns the bytes that collectives take in, by kind, and the loops of unknown length.

    Args:
      text: an optimised HLO module.
    """
    computations = dict(re.findall(r"^(?:ENTRY )?%?(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    passes = _passes(computations)
    found: Counter[str] = Counter()
    for name, body in computations.items():
        for match in COLLECTIVE.finditer(body):
            found[match["kind"]] += _num_bytes(match["result"]) * passes.get(name, (1, 0))[0]
    return found, sum(unknown for _, unknown in passes.values())


def _passes(computations: dict[str, str]) -> dict[str, tuple[int, int]]:
    """How often the body of each loop runs, by name, and whether that is not known (1 or 0)."""
    loops = {}
    for body in computations.values():
        for line in re.findall(r".* while\(.*", body):
            name = re.search(r"body=%?([\w.\-]+)", line)
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            if name is not None:
                loops[name[1]] = (int(known[1]) if known else 1, int(known is None))
    return loops


def _num_bytes(result: str) -> int:
    sizes = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return sum(BYTES[kind] * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in sizes)


def main() -> None:
    """Prints one line per method, layout and number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args()
    paths = prunable_paths(shapes())
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes())]
    print(f"jax {jax.__version__}, {sum(sizes):,} params in {len(sizes)} leaves, {len(paths)} pruned")
    head = ("method", "layout", "devices", "moved", "by kind", "arguments", "results", "temporary")
    rows = [(*head, "limit: moved", "limit: memory")]
    for name in args.methods:
        thresholds = {"gmp": 1, "rigl": 2 * len(paths), "granet": 1 + 2 * len(paths)}[name]
        for layout in ("replicated", "fsdp"):
            for num in args.devices:
                program = compiled(METHODS[name], num, layout == "fsdp")
                found, unknown = moved(program.as_text())
                memory = program.memory_analysis()
                share = num if layout == "fsdp" else 1
                rows.append((
                    name,
                    layout,
                    str(num),
                    f"{found.total():,} B" + (f" ({unknown} loops of unknown length)" * bool(unknown)),
                    ", ".join(f"{kind} {size:,}" for kind, size in found.items()) or "nothing",
                    _mib(memory.argument_size_in_bytes),
                    _mib(memory.output_size_in_bytes),
                    _mib(memory.temp_size_in_bytes),
                    f"{4 * thresholds if share > 1 else 0:,} B",
                    _mib(2 * sum(sizes) / share),
                ))
                print(rows[-1], flush=True)
    print("\n".join(text_table(rows, align="<<>><")))


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
