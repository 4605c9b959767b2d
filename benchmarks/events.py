"""Mask updates of a ResNet-50, against the same update by sorting and against the lower limit.

    python -m benchmarks.events

The limit is the time to read the scores once, which every selection must do. The event by sorting
is the same method with stages that find each threshold by `jnp.sort`. That is cheaper than the
argsort of the nearest peer, and it keeps all ties. Selections use the kernel if there is one; with
JAXSPARSE_KERNELS=off they use bisection.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxsparse
from benchmarks import resnet50, timing
from jaxsparse.counting import count_true
from jaxsparse.event_rows import take_fraction
from jaxsparse.kernels.load import backend
from jaxsparse.types import Leaves, Row, Selected

SPARSITY, STEP = 0.9, 400
OPTIONS: dict[str, Any] = {"sparsity": SPARSITY, "total_steps": 1000, "update_interval": 100}


def prune_by_sort(
    weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
) -> Selected:
    """The stage `prune` over all leaves together."""
    scores = {p: jnp.where(masks[p], jnp.abs(w), -1.0) for p, w in weights.items()}
    order = jnp.sort(jnp.concatenate([x.ravel() for x in scores.values()]))
    threshold = order[order.size - row.target]
    return Selected({p: x >= threshold for p, x in scores.items()}, _no_nan(masks))


def exchange_by_sort(
    weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
) -> Selected:
    """The stage `exchange` by magnitude and gradient."""
    new = {}
    for path, mask in masks.items():
        active = count_true(mask)[0]
        n = take_fraction(active, row.drop, "floor")
        stayed = _top_by_sort(jnp.abs(weights[path]), active - n, mask)
        new[path] = stayed | _top_by_sort(jnp.abs(signal[path]), n, ~stayed)
    return Selected(new, _no_nan(masks))


def _top_by_sort(scores: jax.Array, k: jax.Array, eligible: jax.Array) -> jax.Array:
    scores = jnp.where(eligible, scores, -1.0)
    order = jnp.sort(scores.ravel())
    return (scores >= order[jnp.minimum(order.size - k, order.size - 1)]) & (k > 0)


def _no_nan(masks: Leaves) -> jax.Array:
    return jnp.zeros(len(masks), jnp.int32)


def methods() -> dict[str, tuple[jaxsparse.Method, list[Any], str]]:
    """By name: the method, the stages that do the same by sorting, and their scope."""
    return {
        "gmp": (jaxsparse.gmp(**OPTIONS), [prune_by_sort], "global"),
        "rigl": (jaxsparse.rigl(**OPTIONS), [exchange_by_sort], "layer"),
        "granet": (jaxsparse.granet(**OPTIONS), [prune_by_sort, exchange_by_sort], "global"),
    }


def main() -> None:
    """Prints one line per event."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=15, help="calls per median (by sort: 3)")
    parser.add_argument("--event", choices=list(methods()), help="this one alone")
    args = parser.parse_args()
    times, only = args.times, args.event
    print(f"{timing.machine()}, kernels: {' '.join(backend())}")
    params, grads = resnet50.params(0), resnet50.params(1)
    nbytes = sum(x.nbytes for x in jax.tree.leaves(params))
    print(f"{len(params)} leaves, {nbytes // 4:,} weights, to {SPARSITY:.0%} sparsity")
    read, _ = timing.compile_with_time(
        lambda params: [jnp.abs(x).sum() for x in jax.tree.leaves(params)], params
    )
    limit = timing.median_seconds(functools.partial(read, params), times=times)
    print(f"reading the scores once: {limit * 1e3:.2f} ms\n")
    print(
        f"{'event':<24} {'ms':>7} {'x read':>7} {'by sort ms':>11} {'x faster':>9} "
        f"{'trace s':>8} {'compile s':>10} {'memory':>7} {'by sort':>8}   (memory: temp + output, "
        "x params)"
    )
    report_selection(params, limit, times)
    for name, (method, stages, scope) in methods().items():
        if only not in (None, name):
            continue
        slow = jaxsparse.compose("by sort", stages, method.timetable, scope=scope)  # pyright: ignore[reportArgumentType]
        masks = jax.jit(method.init)(jax.random.key(2), params)
        args = (params, grads, masks, jnp.int32(STEP))
        fast, trace_seconds, compile_seconds = compile_with_times(method.update, *args)
        by_sort, _ = timing.compile_with_time(slow.update, *args)
        check_same(fast(*args), by_sort(*args))
        seconds = timing.median_seconds(functools.partial(fast, *args), times=times)
        sorting = timing.median_seconds(functools.partial(by_sort, *args), times=3)
        print(
            f"{name:<24} {seconds * 1e3:>7.1f} {seconds / limit:>7.1f} {sorting * 1e3:>11.0f} "
            f"{sorting / seconds:>9.1f} {trace_seconds:>8.2f} {compile_seconds:>10.2f} "
            f"{memory(fast, nbytes):>7.2f} "
            f"{memory(by_sort, nbytes):>8.2f}",
            flush=True,
        )


def report_selection(params: Any, limit: float, times: int) -> None:
    """Times the selection alone, of the largest tenth of all |w|."""

    def select(params: Any) -> Any:
        magnitudes = lambda leaves: {p: jnp.abs(w) for p, w in leaves.items()}
        size = sum(w.size for w in params.values())
        return jaxsparse.top_k(jaxsparse.types.Scores(params, magnitudes), size // 10).masks

    selection, trace_seconds, compile_seconds = compile_with_times(select, params)
    seconds = timing.median_seconds(functools.partial(selection, params), times=times)
    print(
        f"{'(global top_k alone)':<24} {seconds * 1e3:>7.1f} {seconds / limit:>7.1f} "
        f"{'':>11} {'':>9} {trace_seconds:>8.2f} {compile_seconds:>10.2f} "
        f"{memory(selection, sum(x.nbytes for x in jax.tree.leaves(params))):>7.2f}",
        flush=True,
    )


def compile_with_times(function: Any, *args: Any) -> tuple[Any, float, float]:
    """Returns the compiled function, and the seconds of tracing and lowering and of compiling."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    middle = time.perf_counter()
    compiled = lowered.compile()
    return compiled, middle - start, time.perf_counter() - middle


def memory(compiled: Any, nbytes: int) -> float:
    """Temporary and output bytes, divided by the bytes of the parameters."""
    analysis = compiled.memory_analysis()
    return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / nbytes


def check_same(event: jaxsparse.Event, by_sort: jaxsparse.Event) -> None:
    """Raises an error unless both choose the same weights, except for ties that the sort keeps."""
    differing = sum(
        int((a != b).sum())
        for a, b in zip(jax.tree.leaves(event.masks), jax.tree.leaves(by_sort.masks), strict=True)
    )
    if differing > 1000:
        raise AssertionError(f"the two events differ in {differing} weights")


if __name__ == "__main__":
    main()
