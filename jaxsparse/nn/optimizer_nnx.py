"""An `nnx.Optimizer` for sparse training, whose state has the masks beside the slots.

method = jaxsparse.granet_st(sparsity=0.95, total_steps=1000, update_interval=25)
optimizer = NNXOptimizer(model, method, optax.adam(1e-3), key=jax.random.key(1))

@nnx.jit(static_argnames="event")
def train_step(model, optimizer, batch, event):
    grads = nnx.grad(loss)(model, batch)
    optimizer.update(model, grads, event=event)

for n in range(1, total_steps + 1):
    train_step(model, optimizer, batch, event=method.is_due(n))
"""

from typing import Any

import jax
import optax
from flax import nnx

from jaxsparse.method import Method
from jaxsparse.metrics import Summary
from jaxsparse.sparse_optimizer import SparseState, sparse_optimizer
from jaxsparse.types import PyTree


class NNXOptimizer(nnx.Pytree):
    """`nnx.Optimizer` for sparse training. `update` has one more keyword, `event`.

    Attributes:
      sparse: the `SparseOptimizer`.
      state: its `SparseState`, with an `nnx.OptState` for every leaf.
      wrt: filter of the variables that are trained.
    """

    def __init__(
        self,
        model: nnx.Module,
        method: Method,
        tx: optax.GradientTransformation,
        *,
        key: jax.Array,
        wrt: Any = nnx.Param,
        masks: PyTree | None = None,
    ):
        """Draws the masks and applies them to the model's parameters, in place.

        Args:
          model: any NNX module.
          method: chooses and changes the masks. Paths are those of `nnx.state(model, wrt)`.
          tx: the optimizer, not masked.
          key: for the initial masks and all events.
          wrt: filter of the variables to train, as in `nnx.Optimizer` and `nnx.grad`.
          masks: initial masks, like `nnx.state(model, wrt)`; drawn by the method if None.
        """
        self.sparse = sparse_optimizer(method, tx)
        self.wrt = wrt
        params, state = self.sparse.init(self._params(model), key=key, masks=masks)
        nnx.update(model, params)
        self.state = nnx.data(jax.tree.map(nnx.OptState, state))

    def update(
        self, model: nnx.Module, grads: PyTree, /, *, event: bool = False, **tx_args: Any
    ) -> None:
        """Makes one step: changes the model's parameters and the optimizer's state in place.

        Args:
          model: the model that the optimizer was made for.
          grads: from `nnx.grad` with the same `wrt`; dense.
          event: Python bool, `method.is_due(n)` for the n-th step; static under `nnx.jit`.
          **tx_args: extra arguments of the optimizer's update, such as `value`.
        """
        params, state = self.sparse.update(
            nnx.as_pure(nnx.state(grads, self.wrt)),
            self._pure_state(),
            self._params(model),
            event=event,
            **nnx.as_pure(tx_args),
        )
        nnx.update(model, params)
        nnx.update(self.state, nnx.state(state))

    @property
    def masks(self) -> PyTree:
        """The masks, a tree of bool like `nnx.as_pure(nnx.state(model, wrt))`."""
        return self._pure_state().masks

    def summary(self, model: nnx.Module) -> Summary:
        """The table of layers, and events that the method missed; waits for the device."""
        return self.sparse.summary(self._params(model), self._pure_state())

    def check(self, model: nnx.Module) -> None:
        """Raises a ValueError if an inactive weight or slot is not 0, or an event was forgotten."""
        self.sparse.check(self._params(model), self._pure_state())

    def _params(self, model: nnx.Module) -> PyTree:
        return nnx.as_pure(nnx.state(model, self.wrt))

    def _pure_state(self) -> SparseState:
        return nnx.as_pure(self.state)
