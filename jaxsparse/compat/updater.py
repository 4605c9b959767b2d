"""An updater as jaxpruner has it: masks in the state of the optimizer, events inside its update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsparse.compat.config import PRUNING, Config, read_config
from jaxsparse.compat.methods import distribution_of, make_method, prunable_rules, score_of
from jaxsparse.keys import fold_key
from jaxsparse.masks import apply_masks, dense_masks, select
from jaxsparse.method import Method
from jaxsparse.one_shot import masks_from_scores
from jaxsparse.paths import leaf_shapes, leaves_by_path, prunable_leaves, with_leaves
from jaxsparse.transforms import mask_slots, masked
from jaxsparse.types import PyTree


class SparseState(NamedTuple):
    """The state of a wrapped optimizer.

    Attributes:
      masks: bool, the structure and shapes of params; all True on leaves that stay dense.
      inner_state: of the optimizer.
      target_sparsities: float32[] for each leaf, 0 if it stays dense; one float32[] if all leaves
        compete. Nothing reads it; it is there for users.
      count: int32[], calls of the update.
    """

    masks: PyTree
    inner_state: Any = None
    target_sparsities: Any = None
    count: Any = None


class Updater(NamedTuple):
    """The result of `create_updater_from_config`; its functions are pure.

    Attributes:
      algorithm: its name.
      wrap_optax: (optimizer) -> optimizer with a `SparseState`, outermost in a chain.
      post_gradient_update: (params, sparse_state) -> params under the masks. It changes nothing
        after an update of the wrapped optimizer, which masks them already.
      pre_forward_update: (params, sparse_state) -> params, as they are.
      instant_sparsify: (params, grads=None) -> (params, masks), pruned in one shot.
      method: (params) -> the method that chooses the masks, `updater.method(params).plan(params)`.
    """

    algorithm: str
    wrap_optax: Callable[[optax.GradientTransformation], optax.GradientTransformationExtraArgs]
    post_gradient_update: Callable[[PyTree, SparseState], PyTree]
    pre_forward_update: Callable[[PyTree, SparseState], PyTree]
    instant_sparsify: Callable[..., tuple[PyTree, PyTree]]
    method: Callable[[PyTree], Method]


def create_updater_from_config(sparsity_config: Any) -> Updater:
    """Returns the updater that a configuration of jaxpruner's describes.

    Args:
      sparsity_config: a mapping or an object with attributes; `Config` says which.

    Raises:
      ValueError: an algorithm or key that is not served, or a value out of range.

    >>> config = {"algorithm": "magnitude", "dist_type": "uniform", "sparsity": 0.75}
    >>> updater = create_updater_from_config(config)
    >>> updater.instant_sparsify({"kernel": jnp.array([[1.0, -4.0, 3.0, 2.0]])})[0]
    {'kernel': Array([[ 0., -4.,  0.,  0.]], dtype=float32)}
    """
    config = read_config(sparsity_config)
    of_rules = functools.cache(lambda rules: make_method(config, rules))
    method_of = lambda params: of_rules(prunable_rules(config, params))
    return Updater(
        algorithm=config.algorithm,
        wrap_optax=functools.partial(_wrap_optax, config, method_of),
        post_gradient_update=lambda params, sparse_state: apply_masks(params, sparse_state.masks),
        pre_forward_update=lambda params, sparse_state: params,
        instant_sparsify=functools.partial(_instant_sparsify, config),
        method=method_of,
    )


def summarize_sparsity(
    param_tree: PyTree, only_total_sparsity: bool = False
) -> dict[str, jax.Array]:
    """Returns the share of zeros by path, and of all leaves together as "_total_sparsity".

    >>> summary = summarize_sparsity({"w": jnp.array([0.0, 1.0]), "b": jnp.ones(2)})
    >>> {name: float(x) for name, x in summary.items()}
    {'b': 0.0, 'w': 0.5, '_total_sparsity': 0.25, '_nparams_nnz': 3.0, '_nparams': 4.0}
    """
    leaves = leaves_by_path(param_tree)
    nonzero = {path: jnp.float32(jnp.count_nonzero(x)) for path, x in leaves.items()}
    sizes = {path: jnp.size(x) for path, x in leaves.items()}
    found = {} if only_total_sparsity else {p: 1 - n / sizes[p] for p, n in nonzero.items()}
    total, size = jnp.float32(sum(nonzero.values())), jnp.float32(sum(sizes.values()))
    both = {"_total_sparsity": 1 - total / size, "_nparams_nnz": total, "_nparams": size}
    return found | both


def _wrap_optax(
    config: Config, method_of: Callable[[PyTree], Method], inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Puts masks around an optimizer and into its state.

    A call with a mask update first changes the masks by its params and gradients, and then steps
    under the new masks, unless the algorithm skips that step.
    """
    if config.algorithm in PRUNING and config.sparsity and not config.update_steps:
        raise ValueError(
            f"algorithm {config.algorithm!r} without update_start_step would train dense; give it "
            "one, or prune in one shot with instant_sparsify"
        )
    tx = masked(inner)

    def init(params: PyTree) -> SparseState:
        return SparseState(
            masks=method_of(params).init(_key(config), params),
            inner_state=tx.init(params),
            target_sparsities=_target_sparsities(config, params),
            count=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree, state: SparseState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SparseState]:
        if params is None:
            raise ValueError("the wrapped optimizer needs params: tx.update(grads, state, params)")
        method, step = method_of(params), state.count + 1
        due = _is_due(method, step)
        masks, kept = _masks_at(method, due, params, updates, state.masks, step, _key(config))
        # A weight that is not kept starts again at 0, and so do its slots.
        start = apply_masks(params, kept)
        slots = mask_slots(tx, state.inner_state, kept)
        updates, inner_state = tx.update(updates, slots, start, masks=masks, **extra)
        if config.skip_gradients:
            if_due = functools.partial(jnp.where, due)
            updates = jax.tree.map(lambda u: if_due(jnp.zeros_like(u), u), updates)
            inner_state = jax.tree.map(if_due, slots, inner_state)
        updates = jax.tree.map(_from_start, updates, params, kept)
        return updates, state._replace(masks=masks, inner_state=inner_state, count=step)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _is_due(method: Method, step: jax.Array) -> jax.Array:
    steps = jnp.array([event.step for event in method.timetable.events], jnp.int32)
    return (steps == step).any()


# Compiled as one: op by op, every call would compile the branch anew.
@functools.partial(jax.jit, static_argnums=0)
def _masks_at(
    method: Method,
    due: jax.Array,
    params: PyTree,
    grads: PyTree,
    masks: PyTree,
    step: jax.Array,
    key: jax.Array,
) -> tuple[PyTree, PyTree]:
    """The masks after a call, and which weights keep their values in it."""
    if not method.timetable.events:
        return masks, masks

    def event() -> tuple[PyTree, PyTree]:
        changed = method.update(params, grads, masks, step, key=key)
        return changed.masks, changed.kept

    return lax.cond(due, event, lambda: (masks, masks))


def _from_start(update: jax.Array, param: jax.Array, kept: jax.Array) -> jax.Array:
    """The update of the weight as it was, from that of the weight that may start again at 0."""
    return select(kept, update, update - param.astype(update.dtype))


def _instant_sparsify(
    config: Config, params: PyTree, grads: PyTree | None = None
) -> tuple[PyTree, PyTree]:
    """Prunes to the final sparsity at once, with exact counts."""
    if config.algorithm == "no_prune":
        return params, dense_masks(params)
    if config.algorithm not in PRUNING:
        raise ValueError(
            f"algorithm {config.algorithm!r} trains sparse from the start: it prunes nothing in "
            "one shot"
        )
    if grads is None:
        if config.algorithm.endswith("saliency"):
            raise ValueError(f"algorithm {config.algorithm!r} needs grads= to prune in one shot")
        grads = params
    prunable = prunable_rules(config, params)
    score, key = score_of(config), _key(config)
    weights, signal = leaves_by_path(params), leaves_by_path(grads)
    scores = {
        path: score(jnp.asarray(weights[path]), jnp.asarray(signal[path]), fold_key(key, path))
        for path in prunable_leaves(params, prunable)
    }
    masks = masks_from_scores(
        with_leaves(params, scores),
        None if config.fixed_density is not None else config.sparsity,
        scope="global" if config.is_global else "layer",
        distribution=None if config.is_global else distribution_of(config),
        pattern=config.pattern,
        prunable=prunable,
    )
    return apply_masks(params, masks), masks


def _target_sparsities(config: Config, params: PyTree) -> PyTree:
    if config.is_global:
        return jnp.float32(config.sparsity)
    zeros = jax.tree.map(lambda x: jnp.float32(0.0), params)
    if config.algorithm == "no_prune":
        return zeros
    shapes = leaf_shapes(prunable_leaves(params, prunable_rules(config, params)))
    if config.fixed_density is not None:
        densities = dict.fromkeys(shapes, config.fixed_density)
    else:
        densities = distribution_of(config)(shapes, 1.0 - config.sparsity)
    return with_leaves(zeros, {path: jnp.float32(1.0 - x) for path, x in densities.items()})


def _key(config: Config) -> jax.Array:
    """The key of masks drawn at random. It is made late, since making it starts JAX's backend."""
    seed = config.rng_seed
    if isinstance(seed, int | np.integer):
        return jax.random.key(seed)
    seed = jnp.asarray(seed)
    is_key = jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    return seed if is_key else jax.random.wrap_key_data(seed)
