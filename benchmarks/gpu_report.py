"""The rows and sums that `gpu_convolution` prints."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from benchmarks.gpu_layers import Layer

DTYPES = ("float32", "bfloat16")
FIRST, SECOND, DENSER = 0.99, 0.999, 0.95
"""Sparsities."""


def least_bytes(layer: Layer, train: bool, dtype: str, batch: int) -> float:
    """Bytes of images, outputs and their gradients that must be read and written."""
    inputs = layer.inputs * layer.size**2
    seen = inputs * min(layer.taps / layer.stride, 1) ** 2
    outputs = layer.outputs * layer.out_size**2
    numbers = 2 * seen + inputs + 2 * outputs if train else seen + outputs
    return numbers * batch * jnp.dtype(dtype).itemsize


def break_even(dense: float, first: float, second: float) -> str:
    """The density at which sparse takes as long as dense, from the line through two sparsities.

    >>> break_even(2.0, 1.0, 0.1), break_even(1.0, 2.0, 1.5)
    ('2.00%', 'none')
    """
    slope = (first - second) / (SECOND - FIRST)
    even = (1 - SECOND) + (dense - second) / slope if slope > 0 else 0.0
    return f"{even:.2%}" if even > 0 else "none"


def head(sparsities: Sequence[float]) -> str:
    """The heading of the rows for these sparsities."""
    cells = [f"{x:.1%} {d}" for d in ("f32", "bf16") for x in sparsities]
    wide = "".join(f" {cell:>24}" for cell in cells)
    note = "sparse: ms, times faster than dense of its dtype, times the memory's limit"
    return f"{note}\n{'layer':<22} {'tf32 ms':>8} {'bf16 ms':>8}{wide} {'spread':>7} {'error':>8}"


def line(row: dict[str, Any], sparsities: Sequence[float]) -> str:
    """The row of a layer."""
    times, cells = row["times"], []
    for dtype in DTYPES:
        dense = times.get(f"dense {dtype}")
        for sparsity in sparsities:
            taken = times.get(f"{sparsity} {dtype}")
            if taken is None or dense is None:
                cells.append(f" {'-':>24}")
                continue
            faster, limit = dense.median / taken.median, taken.median / row["limit"][dtype]
            cells.append(f" {1e3 * taken.median:>10.4f} {faster:>6.2f} {limit:>6.1f}")
    dense_cells = [
        f"{1e3 * times[name].median:>8.4f}" if name in times else f"{'-':>8}"
        for name in (f"dense {dtype}" for dtype in DTYPES)
    ]
    spread = max(((x.high - x.low) / x.median for x in times.values()), default=0.0)
    error = max(row["errors"].values(), default=0.0)
    return (
        f"{row['layer']:<22} {' '.join(dense_cells)}{''.join(cells)} {spread:>7.1%} {error:>8.1e}"
    )


def print_sums(rows: Sequence[dict[str, Any]], convolutions: int) -> None:
    """Prints sums over the network, and their break-even; a layer counts as often as it occurs.

    Args:
      rows: of the layers; rows without all times are left out.
      convolutions: number of convolutions in the network.
    """
    names = [f"{form} {dtype}" for form in ("dense", FIRST, SECOND) for dtype in DTYPES]
    for train in (False, True):
        full = [x for x in rows if x["train"] == train and set(names) <= set(x["times"])]
        if not full:
            continue
        total = {
            name: sum(row["count"] * row["times"][name].median for row in full) for name in names
        }
        limits = {d: sum(row["count"] * row["limit"][d] for row in full) for d in DTYPES}
        calls, what = (
            sum(row["count"] for row in full),
            "forward and backward" if train else "forward",
        )
        print(f"\nsum over {calls} of {convolutions} convolutions, {what}, ms")
        for name in names:
            print(f"  {name:<16} {1e3 * total[name]:9.3f}")
        for dtype in DTYPES:
            dense, first, second = (total[f"{x} {dtype}"] for x in ("dense", FIRST, SECOND))
            even = break_even(dense, first, second)
            print(
                f"  {dtype}: memory's limit {1e3 * limits[dtype]:.3f}, breaks even at {even} dense"
            )
