"""What a finished run cost: FLOPs from its own record of events, and peak memory."""

import resource
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn

from jaxsparse import Method, layer_flops, sparse_flops, training_flops


def flops_of_model(model: nn.Module, params: Any, image: Any) -> dict[str, int]:
    """Returns the dense forward FLOPs by path; `params` and `image` (batch 1) may be shapes."""
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    others = {name: tree for name, tree in variables.items() if name != "params"}
    forward = lambda params, x, others: model.apply({"params": params, **others}, x)
    return layer_flops(forward, params, image, others)


def shapes_and_flops(model: nn.Module, image: Any) -> tuple[Any, dict[str, int]]:
    """Returns the shapes of the model's parameters, and its dense forward FLOPs by path."""
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return params, flops_of_model(model, params, image)


def flops_of_run(
    dense: Mapping[str, int],
    records: Iterable[Mapping[str, Any]],
    sizes: Mapping[str, int],
    method: Method,
    batch_size: int,
) -> dict[str, float]:
    """Returns the FLOPs of training and of one forward pass at the end, and of a dense run.

    Nothing but the records is needed, so that a run which was stopped and went on counts as one.

    Args:
      dense: dense forward FLOPs of one example by path, from `layer_flops`.
      records: of `metrics.jsonl`; "layer_num_active" at step 0 and at every event lists the active
        weights of each prunable leaf.
      sizes: weights of the prunable leaves by path, in the order of the lists.
      method: what was run.
      batch_size: examples a step.

    Raises:
      ValueError: the record of the start is missing, or one has another number of layers.
    """
    densities = {
        record["step"]: {
            path: count / max(size, 1)
            for (path, size), count in zip(sizes.items(), record["layer_num_active"], strict=True)
        }
        for record in records
        if "layer_num_active" in record
    }
    steps = method.timetable.total_steps
    train = batch_size * training_flops(
        dense, densities, steps, dense_gradient=method.dense_gradient
    )
    dense_train = batch_size * training_flops(dense, {0: {}}, steps)
    test, dense_test = sparse_flops(dense, densities[max(densities)]), sum(dense.values())
    return {
        "train_flops": train,
        "dense_train_flops": dense_train,
        "train_flops_ratio": train / dense_train,
        "test_flops": test,
        "dense_test_flops": dense_test,
        "test_flops_ratio": test / dense_test,
    }


def peak_memory(devices: Iterable[Any] | None = None) -> dict[str, Any]:
    """Returns the peak so far in MiB, and what it is the peak of.

    On an accelerator that of the fullest device, "device"; on CPU, whose devices keep no count,
    that of the whole Python process, "process": interpreter, compiler, data and earlier runs in the
    same process included.

    Args:
      devices: what to ask, with JAX's `memory_stats()`; None is all local devices.
    """
    devices = jax.local_devices() if devices is None else devices
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return {"peak_memory_mib": max(peaks) / 2**20, "peak_memory_of": "device"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return {"peak_memory_mib": peak * unit / 2**20, "peak_memory_of": "process"}
