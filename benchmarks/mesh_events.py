"""Bytes that an event of ResNet-50 moves between devices, and memory of each device.

    python -m benchmarks.mesh_events

Nothing runs: the event is compiled for 1, 2, 4 and 8 devices, and its HLO is read. Bytes are those
that the collectives of one device take in: once an event, and once for every pass of a search. A
search with n thresholds a pass halves its bracket of 32 bits log2(n + 1) times, which gives the
most passes; most searches end sooner. Memory is what XLA plans for one device: arguments (params,
gradients, masks), results, and temporary arrays.

The lower limit of bytes is one int32 for every threshold, since each device must learn the counts
of the others. The lower limit of memory beside the arguments is the results: new masks and masks of
kept weights, one byte a weight each.
"""

import argparse
import math
import os
import re
from typing import Any, NamedTuple

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
HEAD = (
    *("method", "layout, devices", "collectives", "bytes once", "a pass", "at most", "limit"),
    *("MiB of arguments", "results", "temporary", "limit"),
)
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


class Moved(NamedTuple):
    """Bytes that the collectives of one device take in.

    Attributes:
      kinds: the kinds of collectives.
      once: bytes of those outside of loops.
      a_pass: bytes of those in one pass of every loop, for each loop.
      most: all bytes, with the most passes that the loops can take.
    """

    kinds: tuple[str, ...]
    once: int
    a_pass: tuple[int, ...]
    most: int


def moved(text: str) -> Moved:
    """Returns what an optimised HLO module moves; its only loops are those of selections."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    loops = set(re.findall(r"while\(.*body=%?([\w.\-]+)", text))
    kinds, once, a_pass, most = set(), 0, [], 0
    for name, body in computations.items():
        found = list(COLLECTIVE.finditer(body))
        num_bytes = sum(_num_bytes(match["result"]) for match in found)
        kinds |= {match["kind"] for match in found}
        if name not in loops:
            once += num_bytes
        elif num_bytes:
            thresholds = int(re.search(r"\[(\d+)\]", found[0]["result"])[1])
            a_pass.append(num_bytes)
            most += num_bytes * math.ceil(32 / math.log2(thresholds + 1))
    return Moved(tuple(sorted(kinds)), once, tuple(a_pass), once + most)


def _num_bytes(result: str) -> int:
    sizes = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return sum(
        BYTES[kind] * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in sizes
    )


def main() -> None:
    """Prints one line per method, layout and number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args()
    paths = prunable_paths(shapes())
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes())]
    print(
        f"jax {jax.__version__}, {sum(sizes):,} params in {len(sizes)} leaves, {len(paths)} pruned"
    )
    rows = [HEAD]
    for name in args.methods:
        thresholds = {"gmp": 1, "rigl": 2 * len(paths), "granet": 1 + 2 * len(paths)}[name]
        for layout in ("replicated", "fsdp"):
            for num in args.devices:
                program = compiled(METHODS[name], num, layout == "fsdp")
                found, memory = moved(program.as_text()), program.memory_analysis()
                is_cut = layout == "fsdp" and num > 1
                cells = (
                    name,
                    f"{layout}, {num}",
                    ", ".join(found.kinds) or "none",
                    f"{found.once:,}",
                    " + ".join(f"{n:,}" for n in found.a_pass) or "0",
                    f"{found.most:,}",
                    f"{4 * thresholds * is_cut:,}",
                    _mib(memory.argument_size_in_bytes),
                    _mib(memory.output_size_in_bytes),
                    _mib(memory.temp_size_in_bytes),
                    _mib(2 * sum(sizes) / (num if is_cut else 1)),
                )
                rows.append(cells)
    print("\n".join(text_table(rows, align="<<<")))


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f}"


if __name__ == "__main__":
    main()
