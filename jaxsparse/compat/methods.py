"""jaxpruner's algorithms as methods of ours: the same stages, distributions and timetables.

A call of the optimizer is counted from 0 there and a step from 1 here, so that the mask update of
call c is the event of step c + 1.
"""

import re
from fractions import Fraction

import jax
import jax.numpy as jnp

from jaxsparse.compat.config import DYNAMIC, PRUNING, Config
from jaxsparse.distributions import erk, uniform, with_overrides
from jaxsparse.masks import dense_masks
from jaxsparse.method import Method, compose
from jaxsparse.paths import leaves_by_path
from jaxsparse.schedules import cosine
from jaxsparse.scores import gradient, magnitude, random, saliency
from jaxsparse.stages import exchange, prune
from jaxsparse.timetable import Timetable, make_timetable
from jaxsparse.types import Distribution, PlannedEvent, PyTree, Rules, Score, Shapes, Stage
from jaxsparse.variants import with_pattern


def make_method(config: Config, prunable: Rules) -> Method:
    """Returns the method that does what the algorithm does.

    Args:
      config: the configuration.
      prunable: the rules for the leaves at hand, from `prunable_rules`.
    """
    dynamic = config.algorithm in DYNAMIC
    stages: list[Stage] = []
    if dynamic:
        grow = gradient if config.algorithm == "rigl" else random
        stages = [exchange(magnitude, grow, rounding="floor")]
    elif config.algorithm in PRUNING:
        score = score_of(config)
        # An exchange of nothing brings dense masks to n of m, and does not change others.
        of_groups = config.fixed_density is not None
        stages = [exchange(score, score, rounding="floor") if of_groups else prune(score)]
    share = distribution_of(config)
    method = compose(
        config.algorithm,
        stages,
        _timetable(config),
        distribution=_in_proportion(share, config.sparsity) if stages and not dynamic else share,
        scope="global" if config.is_global else "layer",
        prunable=prunable,
        skip_step=config.skip_gradients,
        dense_gradient="events" if config.algorithm in ("rigl", "saliency") else "never",
    )
    if config.pattern is not None:
        method = with_pattern(method, config.pattern)
    if config.algorithm in PRUNING:
        method = method._replace(init=_start_dense)
    return method


def prunable_rules(config: Config, params: PyTree) -> Rules:
    """Returns rules that take the leaves which jaxpruner prunes.

    They are those that `filter_fn` takes, or without it all leaves of two axes and more, embeddings
    and norms among them; and those in `custom_sparsity_map`, unless the algorithm is "global_...",
    which leaves all of these out.
    """
    own = config.custom_sparsity_map

    def takes(path: str, leaf: jax.Array) -> bool:
        if path in own:
            return not config.is_global
        if config.filter_fn is None:
            return jnp.ndim(leaf) > 1
        return bool(config.filter_fn(tuple(path.split("/")), leaf))

    chosen = [path for path, leaf in leaves_by_path(params).items() if takes(path, leaf)]
    return tuple((f"^{re.escape(path)}$", True) for path in chosen)


def score_of(config: Config) -> Score:
    """Returns the score by which the algorithm keeps weights."""
    name = config.algorithm.removeprefix("global_")
    score: Score = {"magnitude": magnitude, "saliency": saliency, "random": random}[name]
    if not (config.is_global and config.use_normalization):
        return score

    def normalized(w: jax.Array, g: jax.Array, key: jax.Array | None) -> jax.Array:
        scores = score(w, g, key)
        return scores / (jnp.linalg.norm(scores.ravel()) + config.normalization_eps)

    return normalized


def distribution_of(config: Config) -> Distribution:
    """Returns how the sparsity is shared out at the end."""
    share = uniform() if config.dist_type == "uniform" else erk()
    own = {f"^{re.escape(path)}$": x for path, x in config.custom_sparsity_map.items()}
    return with_overrides(share, own) if own and not config.is_global else share


def _in_proportion(final: Distribution, sparsity: float) -> Distribution:
    """Every leaf has the same share of its final sparsity during training, as in jaxpruner.

    `erk()` alone would share out the density of every event anew.
    """

    def distribution(shapes: Shapes, density: float) -> dict[str, float]:
        share = (1.0 - density) / sparsity if sparsity else 0.0
        at_the_end = final(shapes, 1.0 - sparsity)
        return {path: 1.0 - share * (1.0 - x) for path, x in at_the_end.items()}

    return distribution


def _timetable(config: Config) -> Timetable:
    calls = config.update_steps
    total_steps = calls[-1] + 2 if calls else 1  # the last event is not the last step
    fixed = config.fixed_density
    if config.algorithm in PRUNING and fixed is not None:
        events = tuple(PlannedEvent(call + 1, None, Fraction(0)) for call in calls)
        return Timetable(total_steps, events, fixed)
    sparse = 1.0 - config.sparsity if fixed is None else fixed
    if config.algorithm not in (*PRUNING, *DYNAMIC):
        return Timetable(1, (), sparse if config.algorithm == "static_sparse" else 1.0)
    dynamic = config.algorithm in DYNAMIC
    drop = cosine(config.drop_fraction, 0.0, max(config.update_end_step or 0, 1))
    return make_timetable(
        total_steps=total_steps,
        update_interval=total_steps + 1,  # no grid beside the calls
        also_at=[call + 1 for call in calls],
        initial_density=sparse if dynamic else 1.0,
        density=None if dynamic else lambda step: 1.0 - _sparsity_at(config, step - 1),
        drop_fraction=(lambda step: drop(step - 1)) if dynamic else None,
    )._replace(update_interval=None)


def _sparsity_at(config: Config, call: int) -> float:
    """Zhu and Gupta's cubic, in calls; the last mask update has all of the sparsity."""
    start, end = config.update_start_step, config.update_end_step
    assert start is not None and end is not None
    if call == config.update_steps[-1]:
        return config.sparsity
    progress = min((call + 1 - start) / (end - start), 1.0)
    return config.sparsity * (1.0 - (1.0 - progress) ** 3)


def _start_dense(key: jax.Array, params: PyTree) -> PyTree:
    return dense_masks(params)
