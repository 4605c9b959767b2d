"""The cost of a finished run: FLOPs from its own record of events, and peak memory."""

import resource
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn

from experiments.training.phase import with_relu
from experiments.training.run import Phase
from jaxsparse import Method, layer_flops, sparse_flops, training_flops
from jaxsparse.nn import sharing_of
from jaxsparse.paths import leaves_by_path


def flops_of_model(model: nn.Module, params: Any, image: Any) -> dict[str, int]:
    """Returns the dense forward FLOPs by path; `params` and `image` (batch 1) may be shapes."""
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    others = {name: tree for name, tree in variables.items() if name != "params"}
    forward = lambda params, x, others: model.apply({"params": params, **others}, x)
    return layer_flops(forward, params, image, others)


def shapes_and_flops(model: nn.Module, image: Any) -> tuple[Any, dict[str, int]]:
    """Returns the shapes of the model's parameters, and its dense forward FLOPs by path.

    DyReLU is left out, as it is at the end of training; `extras` counts it.
    """
    model = with_relu(model)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return params, flops_of_model(model, params, image)


def extras(
    model: nn.Module, image: Any, phase: Phase | None, batch_size: int | None, active: int
) -> dict[str, Any]:
    """Returns the cost of DyReLU, and the sparsity with respect to a network without sharing.

    Args:
      model: as it is when training begins.
      image: of batch 1, or its shape.
      phase: of the model's DyReLUs; None if it has none.
      batch_size: images a step; None if it is not known, which leaves "dyrelu_train_flops" out.
      active: weights at the end.

    Returns:
      For DyReLU: "dyrelu_params", its parameters; "dyrelu_flops", their forward FLOPs an image;
      "dyrelu_train_flops", the FLOPs of all training steps that have it. For weight sharing:
      "num_unshared", the prunable weights of the network without it; "unshared_sparsity", the share
      of these that the active weights leave out.
    """
    found: dict[str, Any] = {}
    if phase is not None:
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        own = {path: x for path, x in leaves_by_path(params).items() if "dyrelu" in path}
        by_path = flops_of_model(model, params, image)
        flops = sum(by_path.get(path, 0) for path in own)
        found["dyrelu_params"] = sum(x.size for x in own.values())
        found["dyrelu_flops"] = flops
        if batch_size is not None:
            found["dyrelu_train_flops"] = 3 * flops * batch_size * phase.stop
    unshared = num_unshared(model, image)
    if unshared is not None:
        found |= {"num_unshared": unshared, "unshared_sparsity": 1.0 - active / unshared}
    return found


def num_unshared(model: nn.Module, image: Any) -> int | None:
    """Returns the prunable weights of the network without sharing; None if it shares none."""
    if getattr(model, "num_owners", None) is None:
        return None
    return sharing_of(with_relu(model), image).unshared


def describe_extras(found: Mapping[str, Any]) -> list[str]:
    """Returns the costs that `extras` found, as lines."""
    lines = []
    if "dyrelu_params" in found:
        training = found.get("dyrelu_train_flops")
        lines.append(
            f"DyReLU          {found['dyrelu_params']:,} dense parameters while it lasts, "
            f"{found['dyrelu_flops']:,} FLOPs an image"
            + ("" if training is None else f"; {training:.4g} in all")
        )
    if "num_unshared" in found:
        lines.append(
            f"weight sharing  sparsity {found['unshared_sparsity']:.6g} of the "
            f"{found['num_unshared']:,} weights without sharing"
        )
    return lines


def flops_of_run(
    dense: Mapping[str, int],
    records: Iterable[Mapping[str, Any]],
    sizes: Mapping[str, int],
    method: Method,
    batch_size: int,
    start: int = 0,
) -> dict[str, float]:
    """Returns the FLOPs of training and of one forward pass at the end, and of a dense run.

    The records alone are enough, so that a run which was stopped and went on counts as one.

    Args:
      dense: dense forward FLOPs of one example by path, from `layer_flops`.
      records: of `metrics.jsonl`; "layer_num_active" at the start and at every event lists the
        active weights of each prunable leaf.
      sizes: weights of the prunable leaves by path, in the order of the lists.
      method: that chose the masks.
      batch_size: examples a step.
      start: step that the run started with; the steps before it are not counted.

    Raises:
      ValueError: the record of the start is missing, or one has another number of layers.
    """
    densities = {
        record["step"] - start: {
            path: count / max(size, 1)
            for (path, size), count in zip(sizes.items(), record["layer_num_active"], strict=True)
        }
        for record in records
        if "layer_num_active" in record
    }
    steps = method.timetable.total_steps - start
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
    """Returns the peak memory so far in MiB, and whose peak it is.

    On an accelerator it is the peak of the fullest device, "device". CPU devices keep no count;
    there it is the peak of the whole Python process, "process", including interpreter, compiler,
    data and earlier runs in the same process.

    Args:
      devices: to ask for their JAX `memory_stats()`; None asks all local devices.
    """
    devices = jax.local_devices() if devices is None else devices
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return {"peak_memory_mib": max(peaks) / 2**20, "peak_memory_of": "device"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return {"peak_memory_mib": peak * unit / 2**20, "peak_memory_of": "process"}
