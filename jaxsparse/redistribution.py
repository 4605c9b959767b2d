"""The stage that moves weights between layers: drop in each layer, grow where the mean |m| is high.

It is `exchange` with other numbers to grow. All layers together grow what all of them dropped, and
the worth of a layer's active weights decides its part.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.comparable import comparable
from jaxsparse.counting import count_true
from jaxsparse.event_rows import check_countable, take_fraction
from jaxsparse.keys import fold_key
from jaxsparse.scores import gradient, magnitude, score_leaves
from jaxsparse.selection.top_k import top_k
from jaxsparse.types import Leaves, Rounding, Row, Score, Selected, Stage


@comparable
def redistribute(
    drop: Score = magnitude,
    grow: Score = gradient,
    worth: Score = gradient,
    *,
    rounding: Rounding,
    min_keep: int = 1,
) -> Stage:
    """Drops n of the active weights of every leaf, and shares their sum out by the leaves' worth.

        n = floor or ceil (drop fraction * active)
        grown = sum(n) * share,   share = mean of `worth` over the leaf's active weights / their sum

    A leaf with no room for its share grows all but one of its inactive positions, and the others
    share the rest in the same way. So no leaf becomes dense, and a dense one stays as it is. What
    rounding leaves, less than one weight a leaf, goes to the first leaves with room. Candidates
    are as in `exchange`.

    Args:
      drop: what an active weight is worth; the lowest go.
      grow: what an inactive position is worth; the highest come.
      worth: its mean over the active weights is what a leaf is worth, 0 where it is not finite.
      rounding: "floor" or "ceil".
      min_keep: fewest active weights that the drop leaves to a leaf that has them.

    Reference: Dettmers and Zettlemoyer, "Sparse Networks from Scratch", 2019, algorithm 1.
    """
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding {rounding!r} must be 'floor' or 'ceil'")

    def stage(
        weights: Leaves, signal: Leaves, masks: Leaves, row: Row, key: jax.Array | None
    ) -> Selected:
        check_countable({path: mask.shape for path, mask in masks.items()})
        by_path = lambda counts: dict(zip(masks, counts, strict=True))
        active = jnp.stack([count_true(mask)[0] for mask in masks.values()])
        inactive = jnp.array([mask.size for mask in masks.values()], jnp.int32) - active
        most = jnp.where(inactive > 0, jnp.maximum(active - min_keep, 0), 0)
        n = jnp.minimum(take_fraction(active, row.drop, rounding), most)
        kept = score_leaves(drop, weights, signal, fold_key(key, "drop"))
        stayed = top_k(kept, by_path(active - n), eligible=masks, num_eligible=active)
        promise = score_leaves(grow, weights, signal, fold_key(key, "grow"))
        values = score_leaves(worth, weights, signal, fold_key(key, "worth"))
        means = _means(values.compute(values.inputs), masks, active)
        room = jnp.maximum(inactive + n - 1, 0)
        grown = top_k(
            promise,
            by_path(shared_out(n.sum(dtype=jnp.int32), means, room)),
            given=stayed.masks,
            num_eligible=inactive + n,
        )
        return grown._replace(num_nan=stayed.num_nan + grown.num_nan)

    return stage


def shared_out(total: jax.Array, worth: jax.Array, room: jax.Array) -> jax.Array:
    """Returns integers that add up to `total`, in proportion to `worth` where there is room.

    Args:
      total: int32[], in [0, sum(room)].
      worth: float32[leaves], at least 0. If all leaves with room have 0, the first ones fill up.
      room: int32[leaves], the most that each can take, at least 0.

    >>> shared_out(10, jnp.array([8.0, 1.0, 1.0]), jnp.array([4, 9, 9]))
    Array([4, 3, 3], dtype=int32)
    """
    total, room = jnp.int32(total), jnp.asarray(room, jnp.int32)

    def more(given: jax.Array) -> jax.Array:
        open_worth = jnp.where(given < room, worth, 0.0)
        share = open_worth / jnp.maximum(open_worth.sum(), jnp.finfo(jnp.float32).tiny)
        left = total - given.sum(dtype=jnp.int32)
        wanted = jnp.floor(left.astype(jnp.float32) * share).astype(jnp.int32)
        # Products of large numbers are rounded: what would be too much goes by the order of leaves.
        before = jnp.cumsum(wanted) - wanted
        return jnp.clip(jnp.minimum(wanted, left - before), 0, room - given)

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        given, extra = state
        given = given + extra
        return given, more(given)

    start = jnp.zeros_like(room)
    given, _ = lax.while_loop(lambda state: (state[1] > 0).any(), turn, (start, more(start)))
    free = room - given
    before = jnp.cumsum(free) - free
    return given + jnp.clip(total - given.sum(dtype=jnp.int32) - before, 0, free)


def _means(scores: Leaves, masks: Leaves, active: jax.Array) -> jax.Array:
    """The mean score of the active entries of every leaf, float32[leaves], at least 0."""
    sums = [
        jnp.where(mask, scores[path].astype(jnp.float32), 0.0).sum() for path, mask in masks.items()
    ]
    means = jnp.stack(sums) / jnp.maximum(active, 1)
    return jnp.where(jnp.isfinite(means), jnp.maximum(means, 0.0), 0.0)
