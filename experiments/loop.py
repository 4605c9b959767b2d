"""The training loop that all experiments share: one run, from data and method to its folder.

Data lives on the device as uint8; a step takes indices and does the rest inside the compiled
function. The loop itself is plain Python over two compiled steps, one with a mask update and one
without, because on CPU a convolution inside a `lax.scan` or `lax.cond` is several times slower.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

import jaxsparse
from experiments import plots
from experiments.data.dataset import Dataset, Split
from experiments.run_folder import RunFolder, series
from jaxsparse import Method, TrainState
from jaxsparse.flops import layer_flops, sparse_flops
from jaxsparse.metrics import Summary
from jaxsparse.paths import prunable_leaves
from jaxsparse.timetable import check_steps


class Run(NamedTuple):
    """What one run needs.

    Attributes:
      model: maps float[batch, height, width, channels] to float[batch, classes] logits.
      dataset: training, validation and test images.
      normalise: uint8 images to floats, inside the compiled step.
      method: chooses the masks.
      tx: the optimizer, not yet masked.
      batch_size: images a step.
      seed: of the initial weights, the masks and the order of the data.
      eval_every: steps between validations.
      log_every: steps between records of the training loss.
    """

    model: nn.Module
    dataset: Dataset
    normalise: Callable[[jax.Array], jax.Array]
    method: Method
    tx: optax.GradientTransformation
    batch_size: int
    seed: int
    eval_every: int
    log_every: int = 50

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.method.timetable.total_steps


def train(run: Run, out: Path, config: dict[str, Any], *, title: str) -> dict[str, Any]:
    """Trains, evaluates, and leaves a folder with metrics, summary and plot.

    The model is selected by validation only: "last" is what the run ends with, "best" has the
    highest validation accuracy among the evaluations at the final sparsity (before it, a denser
    network would win). Test images are looked at once, after training.

    Args:
      run: what to train.
      out: the run's folder.
      config: written to `config.json`; its fields model, schedule and seed go to the summary.
      title: of the plot.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      ValueError: the folder holds a finished run, or there are fewer images than a batch.
    """
    num_images = len(run.dataset.train.labels)
    if not 1 <= run.batch_size <= num_images:
        raise ValueError(f"batch_size {run.batch_size} must be in [1, {num_images}]")
    check_steps(eval_every=run.eval_every, log_every=run.log_every)
    # What cannot work is refused before anything is written.
    run.method.plan(jax.eval_shape(functools.partial(initial_params, run)))
    settled_step = max(
        (event.step for event in run.method.timetable.events if event.density is not None),
        default=0,
    )
    images, labels = jnp.asarray(run.dataset.train.images), jnp.asarray(run.dataset.train.labels)
    indices = batches(jax.random.key(run.seed), len(labels), run.batch_size)
    best: dict[str, Any] = {"val_accuracy": -1.0}

    with RunFolder.create(out, config) as folder, progress_bar(run.steps, title) as progress:
        state = create_state(run)
        steps = compile_steps(run, state, images, labels)
        started, paused = time.perf_counter(), 0.0
        folder.log(0, density=density_of(state))
        for step in range(1, run.steps + 1):
            event = run.method.is_due(step)
            state, loss = steps[event](state, images, labels, next(indices))
            progress.update()
            record = event_scalars(state) if event else {}
            if step % run.log_every == 0:
                record["train_loss"] = finite(float(loss), step)
            if step % run.eval_every == 0 or step == run.steps:
                jax.block_until_ready(state.params)
                pause = time.perf_counter()
                accuracy = evaluate(run, state.params, run.dataset.val)
                record |= {"val_accuracy": accuracy, "density": density_of(state)}
                progress.set_postfix(val=f"{accuracy:.4f}", density=f"{record['density']:.4f}")
                if step >= settled_step and accuracy > best["val_accuracy"]:
                    # A copy: the next step donates these buffers.
                    params = jax.tree.map(jnp.copy, state.params)
                    best = {"val_accuracy": accuracy, "step": step, "params": params}
                paused += time.perf_counter() - pause
            if record:
                folder.log(step, **record)
        seconds = time.perf_counter() - started - paused

        summary = summarise(run, state, best, config) | {"steps_per_second": run.steps / seconds}
        draw(folder, state, title)
        folder.finish(summary)
    return summary


def progress_bar(steps: int, title: str) -> tqdm:
    """A bar for a terminal; in a log file a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=steps, unit="step", desc=title, dynamic_ncols=True, mininterval=interval)


def create_state(run: Run) -> TrainState:
    """Initial weights and masks."""
    return TrainState.create(
        apply_fn=run.model.apply,
        params=jax.jit(functools.partial(initial_params, run))(),
        tx=run.tx,
        method=run.method,
        key=jax.random.fold_in(jax.random.key(run.seed), 1),
        track_exploration=True,
    )


def initial_params(run: Run) -> Any:
    """Initial weights: the same seed gives every method the same ones."""
    image = run.normalise(jnp.asarray(run.dataset.train.images[:1]))
    return run.model.init(jax.random.fold_in(jax.random.key(run.seed), 0), image)["params"]


def compile_steps(
    run: Run, state: TrainState, images: jax.Array, labels: jax.Array
) -> dict[bool, Callable[..., tuple[TrainState, jax.Array]]]:
    """Compiles the training step, without and with a mask update, before the clock starts."""

    @functools.partial(jax.jit, static_argnames="event", donate_argnames="state")
    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array, event: bool
    ) -> tuple[TrainState, jax.Array]:
        batch, targets = run.normalise(images[indices]), labels[indices]

        def mean_loss(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, grads = jax.value_and_grad(mean_loss)(state.params)
        return state.apply_gradients(grads=grads, event=event), loss

    indices = jnp.zeros(run.batch_size, jnp.int32)
    kinds = (False, True) if run.method.timetable.events else (False,)
    return {
        event: train_step.lower(state, images, labels, indices, event=event).compile()
        for event in kinds
    }


def batches(key: jax.Array, num_images: int, batch_size: int) -> Iterator[jax.Array]:
    """Yields int32[batch_size] indices forever: a fresh permutation every epoch, the tail left out.

    The order follows from the key and the number of the epoch alone.
    """
    per_epoch = num_images // batch_size
    epoch = 0
    while True:
        order = jax.random.permutation(jax.random.fold_in(key, 2 + epoch), num_images)
        yield from order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        epoch += 1


def evaluate(run: Run, params: Any, split: Split, batch_size: int = 1000) -> float:
    """Returns the share of images of the split that are classified correctly, in [0, 1]."""
    correct = 0
    for start in range(0, len(split.labels), batch_size):
        images = jnp.asarray(split.images[start : start + batch_size])
        labels = jnp.asarray(split.labels[start : start + batch_size])
        correct += int(_num_correct(run.model, run.normalise, params, images, labels))
    return correct / len(split.labels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _num_correct(
    model: nn.Module,
    normalise: Callable[[jax.Array], jax.Array],
    params: Any,
    images: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    logits = model.apply({"params": params}, normalise(images))
    return (jnp.argmax(jnp.asarray(logits), -1) == labels).sum()


def density_of(state: TrainState) -> float:
    """Returns active / prunable weights, in [0, 1]."""
    return 1.0 - jaxsparse.sparsity(state.masks, state.method.prunable)


def event_scalars(state: TrainState) -> dict[str, float]:
    """Returns the last event's counts, summed over layers, and the share of weights ever active."""
    counts = {
        name: int(np.asarray(values, np.int64).sum())
        for name, values in state.event_metrics._asdict().items()
    }
    explored = jaxsparse.exploration_rate(state.explored, state.method.prunable)
    empty = int(state.event_metrics.num_empty)
    sizes = [x.size for x in prunable_leaves(state.masks, state.method.prunable).values()]
    return {
        "density": counts["num_active"] / sum(sizes),
        **counts,
        "num_empty": empty,
        "exploration_rate": float(explored),
    }


def finite(loss: float, step: int) -> float:
    """Returns the loss, raises a ValueError if it is not a finite number."""
    if not math.isfinite(loss):
        raise ValueError(f"the training loss at step {step} is {loss}; lower --learning_rate")
    return loss


def summarise(
    run: Run, state: TrainState, best: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """Checks the masks' invariants once more, looks at the test images, and says what came out."""
    jaxsparse.check(state.params, state.opt_state, state.masks)
    layers = jaxsparse.summary(state.params, state.masks, run.method.prunable)
    return {
        "method": config["schedule"],
        "dataset": run.dataset.name,
        "model": config["model"],
        "seed": run.seed,
        "sparsity": layers.sparsity,
        "num_active": layers.num_active,
        "num_prunable": layers.num_prunable,
        "empty_layers": [layer.path for layer in layers.layers if layer.num_active == 0],
        "num_events": len(run.method.timetable.events),
        "test_accuracy": evaluate(run, state.params, run.dataset.test),
        "val_accuracy": evaluate(run, state.params, run.dataset.val),
        "best_step": best["step"],
        "best_val_accuracy": best["val_accuracy"],
        "best_test_accuracy": evaluate(run, best["params"], run.dataset.test),
        "exploration_rate": float(jaxsparse.exploration_rate(state.explored, run.method.prunable)),
        **forward_flops(run, state.params, layers),
        "steps": run.steps,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "jaxsparse": jaxsparse.__version__,
    }


def forward_flops(run: Run, params: Any, layers: Summary) -> dict[str, float]:
    """Returns the FLOPs of classifying one image, dense and at the layers' densities."""
    image = run.normalise(jnp.asarray(run.dataset.test.images[:1]))
    dense = layer_flops(lambda params, x: run.model.apply({"params": params}, x), params, image)
    sparse = sparse_flops(dense, {layer.path: layer.density for layer in layers.layers})
    total = sum(dense.values())
    return {"test_flops": sparse, "dense_test_flops": total, "test_flops_ratio": sparse / total}


def draw(folder: RunFolder, state: TrainState, title: str) -> None:
    """Writes `plot.png`: accuracy and density over steps, density per layer."""
    records = folder.read_metrics()
    layers = jaxsparse.summary(state.params, state.masks, state.method.prunable).layers
    plots.plot_run(
        folder.path / "plot.png",
        title=title,
        accuracy={"validation": series(records, "val_accuracy")},
        density=series(records, "density"),
        layers={layer.path: (layer.num_active, layer.size) for layer in layers},
    )
