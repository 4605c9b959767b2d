"""Masks in optax: `masked` around any optimizer, and `apply_event` after a mask update."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.comparable import comparable
from jaxsparse.inside_optax import is_hole, update_with_masks, why_refused
from jaxsparse.masks import apply_mask, apply_masks, check_masks, dense_masks, select
from jaxsparse.overwritten import trained_part
from jaxsparse.paths import check_like
from jaxsparse.types import Event, PyTree


def masked(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that inactive weights and their slots stay exactly 0.

        tx = jaxsparse.masked(optax.sgd(0.1, momentum=0.9))
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        params = optax.apply_updates(params, updates)

    NOT to be confused with `optax.masked`, which chooses whole leaves and passes the others on:
    this one works element by element, and masks are an argument of every update, never state.
    `masked(optax.masked(...))` does both, the other way round is refused.

    The gradient is masked before `inner` sees it, and so is every parameter-shaped slot of its
    state (momentum, second moments). Off the mask the update is -p, so that `optax.apply_updates`
    lands on exactly 0 whatever `inner` does there (weight decay, noise, Muon's dense update), as
    long as the weight itself is finite. Hence `masked` goes outermost: what is chained after it
    could undo that. Clipping by global norm inside sees the norm of the masked gradient, before it
    that of the dense one; both are legitimate.

    Slots are masked on entry, fused into the step's own reads; on exit it would take another pass
    over them (1.6 times the bytes of the whole step). So what an optimizer itself puts off the mask
    stands until the next step reads it as 0: the epsilon that Adafactor, AdaBelief and AdaMax add
    to their second moments, and what noise or `optax.centralize` ahead of a momentum leave in it.

    With `optax.MultiSteps` let events fall on steps that emit an update, and give RigL and SET
    `skip_step=False`: a skipped step would not count as one of the accumulated ones. A weight that
    an event grows starts with the slots of the optimizer's own `init` (0, Adagrad's initial
    accumulator, Rprop's step size). Adam's bias correction goes by the count of all steps, so that
    a weight grown late takes first steps up to 6.6 times the learning rate: see
    `jaxsparse.scale_by_age`.

    Args:
      inner: any optax transformation whose slots have the shape of their parameters. Slots of other
        shapes (Adafactor's factored rows and columns, GaLore's projected moments) cannot be masked
        and are left alone. It is handed `masks=` like every other extra argument, unless an update
        in it takes none but its own (`optax.contrib.sam`). A function of params that it calls
        itself (`grad_fn` of SAM's opaque mode, Sophia's `obj_fn`) gives dense gradients.

    Returns:
      A transformation with the state of `inner` and no more. Its `update(grads, state, params, *,
      masks, **extra)` takes masks, a tree of bool like params, as a keyword, and needs params.

    Raises:
      TypeError: `update` without masks.
      ValueError: `init` of an optimizer whose slots cannot be found or that could not train with
        masks (lookahead, SM3, L-BFGS, ACProp), with the reason; `update` without params, or with
        trees that differ, naming the first leaf.
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
        except Exception as error:  # whatever this optimizer's own init makes of a placeholder
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
                "masked(...) stands inside optax.masked or optax.partition, which hand it only "
                "some of the leaves; put it outermost: masked(optax.partition(...))"
            )
        masks = check_masks(masks, params)
        updates = check_like(updates, params, name="grads", like="params")
        state = mask_slots(inner, state, masks)
        updates = apply_masks(updates, masks)
        updates, state = inner_update(updates, state, params, masks=masks, **extra)
        return jax.tree.map(_land_on_zero, updates, params, masks), state

    return update


def mask_slots(tx: optax.GradientTransformation, opt_state: PyTree, masks: PyTree) -> PyTree:
    """Returns the optimizer state with every parameter-shaped slot at 0 off the masks.

    Args:
      tx: the transformation that made the state; only its `init` is used.
      opt_state: its state.
      masks: bool, the structure and shapes of params.
    """

    def mask_slot(slot: Any, mask: Any) -> Any:
        if is_hole(slot) or np.shape(slot) != np.shape(mask):
            return slot
        return apply_mask(slot, mask)

    return optax.tree.map_params(tx, mask_slot, opt_state, masks, is_leaf=is_hole)


def apply_event(
    tx: optax.GradientTransformation, event: Event, params: PyTree, opt_state: PyTree
) -> tuple[PyTree, PyTree]:
    """Carries out an event: a weight that is not kept is 0, and its slots are as at the start.

    Slots of an active weight become what `tx.init` gives them: 0 for momentum and Adam, Adagrad's
    initial accumulator, Rprop's step size. Those of an inactive one become 0.

    Args:
      tx: the `masked` transformation in use.
      event: what `method.update` returned.
      params: the parameters, any pytree.
      opt_state: the state of `tx`.

    Returns:
      params and opt_state, to go on with under `event.masks`.

    Raises:
      ValueError: the trees differ; or the slots are in other containers than params.
    """
    kept = trained_part(check_masks(event.kept, params))
    masks = trained_part(check_masks(event.masks, params))
    params = apply_masks(params, event.kept)
    first = mask_slots(tx, tx.init(trained_part(params)), masks)
    return params, _join_slots(tx, kept, opt_state, first)


def _join_slots(
    tx: optax.GradientTransformation, kept: PyTree, opt_state: PyTree, first: PyTree
) -> PyTree:
    """The optimizer state with every parameter-shaped slot of `first` where it is not kept."""
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
    """The update on the mask, -p off it, in a dtype that holds -p exactly."""
    dtype = jnp.promote_types(update.dtype, param.dtype)
    return select(mask, update.astype(dtype), -param.astype(dtype))
