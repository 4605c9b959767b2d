"""Masks in optax: `masked` around any optimizer, and `apply_event` after a mask update."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxsparse.comparable import comparable
from jaxsparse.inside_optax import is_hole, update_with_masks, why_refused
from jaxsparse.masks import apply_mask, apply_masks, check_masks, dense_masks, select
from jaxsparse.meshes import on_all_devices, place, placed_by, replicate
from jaxsparse.overwritten import trained_part
from jaxsparse.paths import check_like
from jaxsparse.types import Event, PyTree


def masked(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that inactive weights and their slots stay exactly 0.

        tx = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        params = optax.apply_updates(params, updates)

    This is NOT `optax.masked`, which picks whole leaves and passes the others on. This function
    works element by element, and takes masks as an argument of every update, never as state.
    `masked(optax.masked(...))` does both; the other way round is refused.

    The gradient and every parameter-shaped slot (momentum, second moments) are masked before
    `inner` sees them. Off the mask the update is -p, so `optax.apply_updates` lands on exactly 0
    whatever `inner` does there (weight decay, noise, Muon's dense update), as long as the weight is
    finite. `masked` must therefore be outermost: a transformation chained after it could undo this.
    Clipping by global norm sees the masked gradient if it is inside `masked`, and the dense one if
    it comes before; both are legitimate.

    Slots are masked on entry, because XLA fuses this into the reads of the step. Masking them on
    exit would take another pass (1.6 times the bytes of the whole step). Values that an optimizer
    itself writes off the mask therefore stay until the next step reads them as 0. Examples are the
    epsilon that Adafactor, AdaBelief and AdaMax add to their second moments, and what noise or
    `optax.centralize` before a momentum leave in it.

    If you use `optax.MultiSteps`, let events fall on steps that emit an update, and give RigL and
    SET `skip_step=False`: a skipped step would not count as an accumulated one. A weight that an
    event grows starts with the slots of the optimizer's own `init` (0, Adagrad's initial
    accumulator, Rprop's step size). Adam corrects its bias by the count of all steps, so the first
    steps of a weight that is grown late are up to 6.6 times the learning rate; see
    `jaxsparse.scale_by_age`.

    Args:
      inner: any optax transformation whose slots have the shape of their parameters. Slots of other
        shapes (Adafactor's factored rows and columns, GaLore's projected moments) cannot be masked
        and are left alone. `inner` receives `masks=` like every other extra argument, unless an
        update inside it accepts only its own arguments (`optax.contrib.sam`). If it calls a
        function of params itself (`grad_fn` of SAM's opaque mode, Sophia's `obj_fn`), it gets dense
        gradients from it.

    Returns:
      A transformation whose state is that of `inner`. Its `update(grads, state, params, *, masks,
      **extra)` needs params, and takes masks, a tree of bool like params, by keyword.

    Raises:
      TypeError: `update` is called without masks.
      ValueError: `init` cannot find the optimizer's slots, or the optimizer could not train with
        masks (lookahead, SM3, L-BFGS, ACProp); says why. `update` is called without params, or with
        trees that differ; names the first leaf.
    """
    # optax's type of an update does not say that extra arguments may be required.
    init, update = cast(Any, _init_of(inner)), cast(Any, _update_of(inner))
    return optax.GradientTransformationExtraArgs(init, update)


@comparable
def _init_of(inner: optax.GradientTransformation) -> Callable[[PyTree], PyTree]:
    def init(params: PyTree) -> PyTree:
        state = inner.init(params)
        if reason := why_refused(inner, state):
            raise ValueError(f"masked cannot serve this optimizer: {reason}")
        try:
            jax.eval_shape(lambda state: mask_slots(inner, state, dense_masks(params)), state)
        except Exception as error:  # this optimizer's init may do anything to a placeholder
            raise ValueError(
                "masked cannot tell which parts of this optimizer's state belong to which "
                "parameter, so it could not keep them at 0 off the mask"
            ) from error
        return state

    return init


@comparable
def _update_of(inner: optax.GradientTransformation) -> Callable[..., tuple[PyTree, PyTree]]:
    inner_update = update_with_masks(inner)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        masks: PyTree | None = None,
        **extra: Any,
    ) -> tuple[PyTree, PyTree]:
        if masks is None:
            raise TypeError("masked(...).update needs masks=, a tree of bool like params")
        if params is None:
            raise ValueError(
                "masked(...).update needs params: tx.update(grads, state, params, masks=)"
            )
        if any(is_hole(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_hole)):
            raise ValueError(
                "masked(...) is inside optax.masked or optax.partition, which pass it only some of "
                "the leaves; put it outermost: masked(optax.partition(...))"
            )
        masks = check_masks(masks, params)
        updates = check_like(updates, params, name="grads", like="params")
        state = mask_slots(inner, state, masks)
        updates = apply_masks(updates, masks)
        updates, state = inner_update(updates, state, params, masks=masks, **extra)
        return jax.tree.map(_land_on_zero, updates, params, masks), state

    return update


def mask_slots(tx: optax.GradientTransformation, opt_state: PyTree, masks: PyTree) -> PyTree:
    """Returns the optimizer state with every parameter-shaped slot set to 0 off the masks.

    Args:
      tx: the transformation that made the state; only its `init` is used.
      opt_state: the state of `tx`.
      masks: bool, the structure and shapes of params.
    """

    def mask_slot(slot: Any, mask: Any) -> Any:
        if is_hole(slot) or np.shape(slot) != np.shape(mask):
            return slot
        return apply_mask(slot, mask)

    return optax.tree.map_params(tx, mask_slot, opt_state, masks, is_leaf=is_hole)


def place_slots(
    tx: optax.GradientTransformation, opt_state: PyTree, params: PyTree, mesh: Mesh
) -> PyTree:
    """Returns the optimizer state on a mesh: slots as their weights, the rest on all devices.

    Args:
      tx: the transformation that made the state; only its `init` is used.
      opt_state: the state of `tx`.
      params: the weights, of which those on the mesh say where their slots go.
      mesh: the mesh.
    """

    def place_slot(slot: Any, leaf: Any) -> Any:
        if is_hole(slot) or np.shape(slot) != np.shape(leaf):
            return slot
        return place(slot, placed_by(leaf) or on_all_devices(mesh))

    placed = optax.tree.map_params(tx, place_slot, opt_state, params, is_leaf=is_hole)
    return replicate(mesh, placed)


def apply_event(
    tx: optax.GradientTransformation, event: Event, params: PyTree, opt_state: PyTree
) -> tuple[PyTree, PyTree]:
    """Carries out an event: sets weights that are not kept to 0, and resets their slots.

    A slot of an active weight becomes what `tx.init` gives it: 0 for momentum and Adam, the initial
    accumulator for Adagrad, the step size for Rprop. A slot of an inactive weight becomes 0.

    Args:
      tx: the `masked` transformation in use.
      event: what `method.update` returned.
      params: the parameters, any pytree.
      opt_state: the state of `tx`.

    Returns:
      params and opt_state, from which training continues under `event.masks`.

    Raises:
      ValueError: the trees differ, or the slots are in other containers than params.
    """
    kept = trained_part(check_masks(event.kept, params))
    masks = trained_part(check_masks(event.masks, params))
    params = apply_masks(params, event.kept)
    first = mask_slots(tx, tx.init(trained_part(params)), masks)
    return params, _join_slots(tx, kept, opt_state, first)


def _join_slots(
    tx: optax.GradientTransformation, kept: PyTree, opt_state: PyTree, first: PyTree
) -> PyTree:
    """The optimizer state, with slots of weights that are not kept taken from `first`."""
    is_slot = lambda slot, keep: not is_hole(slot) and np.shape(slot) == np.shape(keep)
    join = lambda keep, old, new: old if keep is True else select(keep, old, new.astype(old.dtype))
    try:
        keeps = optax.tree.map_params(
            tx,
            lambda slot, keep: keep if is_slot(slot, keep) else True,
            opt_state,
            kept,
            transform_non_params=lambda _: True,
            is_leaf=is_hole,
        )
        return jax.tree.map(join, keeps, opt_state, first, is_leaf=is_hole)
    except ValueError as error:
        raise ValueError(
            "the optimizer's slots are not in the containers of params; with Flax NNX give both "
            "without variables, nnx.as_pure(optimizer.opt_state), or take NNXOptimizer"
        ) from error


def _land_on_zero(update: jax.Array, param: jax.Array, mask: jax.Array) -> jax.Array:
    """The update where the mask is True and -p elsewhere, in a dtype that holds -p exactly."""
    dtype = jnp.promote_types(update.dtype, param.dtype)
    return select(mask, update.astype(dtype), -param.astype(dtype))
