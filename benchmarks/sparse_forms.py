"""The programs that `sparse_execution` times: step and inference of a network in three forms.

dense    the unchanged model with masked kernels, images as [batch, height, width, channels]
sparse   by active weights, with the layout and the forms of layers that `choose_forms` chooses
stock    by active weights, in the unchanged model
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxsparse
from benchmarks import timing
from benchmarks.steps import Stepper
from jaxsparse.nn import choose_forms, cifar_resnet, layer_shapes, resnet, sparse_execution
from jaxsparse.sparse import (
    BreakEven,
    LayerShape,
    Positions,
    choose_capacity,
    compress,
    compress_leaves,
    count_active,
    find_positions,
)

MODELS = {
    "resnet8": cifar_resnet(8),
    "resnet20": cifar_resnet(20),
    "resnet34": resnet(34, stem="cifar", num_classes=10),
    "resnet50": resnet(50, stem="cifar", num_classes=10),
}
IMAGE = (32, 32, 3)
# The learning rate is small, so that hundreds of steps on one batch stay finite.
OPTIMIZER = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-3, momentum=0.9))


class State(jaxsparse.TrainState):
    """A train state with the statistics of the norms."""

    batch_stats: Any


class Form(NamedTuple):
    """How a network is executed.

    Attributes:
      model: in its layout.
      positions: of the layers executed by their active weights, by path.
      layers: shapes of all layers that have a sparse form.
    """

    model: nn.Module
    positions: dict[str, Positions]
    layers: dict[str, LayerShape]


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      run: makes the next step, or the same inference again, and waits for it.
      result: returns the result of the last run, the loss or the logits.
      temp_bytes: memory of a run beside its arguments and results.
      compile_seconds: of compiling, without tracing.
      optimizer_bytes: of the optimizer's state; 0 for inference.
    """

    run: Any
    result: Any
    temp_bytes: int
    compile_seconds: float
    optimizer_bytes: int


class Network:
    """A model with ERK masks drawn and a batch of random images.

    Attributes:
      model: unchanged.
      images: float32[batch, 32, 32, 3].
      state: train state with dense leaves.
    """

    def __init__(self, model: nn.Module, batch: int, sparsity: float):
        self.model = model
        self.images = jax.random.normal(jax.random.key(0), (batch, *IMAGE))
        self._labels = jnp.arange(batch) % 10
        variables = _variables(model)
        self.state = State.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=OPTIMIZER,
            method=jaxsparse.static(sparsity=sparsity, total_steps=1),
            key=jax.random.key(2),
            batch_stats=variables["batch_stats"],
        )

    def forms(self, train: bool, break_even: BreakEven) -> dict[str, Form]:
        """The three forms for training or inference."""
        active = count_active(self.state.masks)
        options: Any = {"train": train, "exact": True, "break_even": break_even}
        chosen = choose_forms(self.model, self.images, active, **options)
        stock_layers = self._layers(self.model)
        stock_capacity = choose_capacity(active, stock_layers, **options)
        positions = lambda capacity: find_positions(self.state.masks, capacity=capacity)
        return {
            "dense": Form(self.model, {}, stock_layers),
            "sparse": Form(chosen.model, positions(chosen.capacity), self._layers(chosen.model)),
            "stock": Form(self.model, positions(stock_capacity), stock_layers),
        }

    def training(self, form: Form) -> Program:
        """A training step that donates the state; each run continues from the last one."""
        state = jax.jit(compress)(self.state, form.positions)
        step = functools.partial(_train_step, form.model)
        start = (state, jnp.zeros(()))
        stepper = Stepper(step, start, self.images, self._labels, form.positions)
        return Program(
            lambda: jax.block_until_ready(stepper()),
            lambda: np.asarray(stepper.state[1]),
            stepper.compiled.memory_analysis().temp_size_in_bytes,
            stepper.compile_seconds,
            sum(x.nbytes for x in jax.tree.leaves(state.opt_state)),
        )

    def inference(self, form: Form) -> Program:
        """Logits of the batch."""
        params = jax.jit(compress_leaves)(self.state.params, form.positions)
        variables = {"params": params, "batch_stats": self.state.batch_stats}
        apply = functools.partial(_infer, form.model)
        args = (variables, self.images, form.positions)
        compiled, seconds = timing.compile_with_time(apply, *args)
        return Program(
            lambda: jax.block_until_ready(compiled(*args)),
            lambda: np.asarray(compiled(*args)),
            compiled.memory_analysis().temp_size_in_bytes,
            seconds,
            0,
        )

    def _layers(self, model: nn.Module) -> dict[str, LayerShape]:
        variables = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        return layer_shapes(model.apply, variables, self.images)


@functools.cache
def _variables(model: nn.Module) -> Any:
    return jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, *IMAGE)))


def _train_step(
    model: nn.Module,
    before: tuple[State, jax.Array],
    images: jax.Array,
    labels: jax.Array,
    positions: dict[str, Positions],
) -> tuple[State, jax.Array]:
    """Maps the state and the last loss to the next ones."""
    state, _ = before

    def loss(params: Any) -> tuple[jax.Array, Any]:
        with sparse_execution(positions):
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
        return losses.mean(), updated["batch_stats"]

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, event=False, batch_stats=batch_stats), value


def _infer(
    model: nn.Module, variables: Any, images: jax.Array, positions: dict[str, Positions]
) -> jax.Array:
    with sparse_execution(positions):
        return jnp.asarray(model.apply(variables, images))
