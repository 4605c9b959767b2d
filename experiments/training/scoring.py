"""Initial masks from scores of the initial weights: SNIP, GraSP, SynFlow, magnitude, random.

SNIP and GraSP look at as many training images of each class, drawn by the run's seed, as they are
stored: GraSP's code draws them augmented. Of a run that loads its images batch by batch, they look
at the batches of the first steps, which hold as many images in all; on ImageNet GraSP's code looks
at random batches too. They see the network in float32, whatever it trains in,
and as it is when DyReLU is gone.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxsparse
from experiments.training.criteria import CRITERIA
from experiments.training.run import SCORES, Run
from jaxsparse.nn import without_dyrelu
from jaxsparse.paths import leaves_by_path, with_leaves


def masks_of(run: Run, variables: Mapping[str, Any]) -> Any:
    """Returns the initial masks that `run.scoring` asks for, a tree like the params.

    Args:
      run: with a scoring.
      variables: the initial ones.

    Raises:
      ValueError: a class has too few images, scores say nothing, or as `masks_from_scores`.
    """
    scoring = run.scoring
    assert scoring is not None
    options = {**scoring.options, "sparsity": scoring.sparsity, "prunable": run.method.prunable}
    default = CRITERIA[scoring.criterion].num_rounds
    if default is not None:
        options["num_rounds"] = scoring.num_rounds or default
    # Without its axis, norms average over the batch as jit sees it: all of it.
    changes = {"dyrelu": None, "dtype": jnp.float32, "axis_name": None}
    has = lambda name: getattr(run.model, name, None) is not None
    network = run.model.clone(**{name: new for name, new in changes.items() if has(name)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the records of the run have dead layers
        masks = _CHOOSE[scoring.criterion](run, network, without_dyrelu(dict(variables)), options)
    return with_leaves(jaxsparse.dense_masks(variables["params"]), leaves_by_path(masks))


def _snip(run: Run, network: nn.Module, variables: dict[str, Any], options: dict[str, Any]) -> Any:
    loss_fn = jaxsparse.cross_entropy(_logits_of(run, network, variables, train=False))
    return jaxsparse.snip_masks(loss_fn, variables["params"], _batches(run), **options)


def _grasp(run: Run, network: nn.Module, variables: dict[str, Any], options: dict[str, Any]) -> Any:
    loss_fn = jaxsparse.cross_entropy(_logits_of(run, network, variables, train=True))
    return jaxsparse.grasp_masks(loss_fn, variables["params"], _batches(run), **options)


def _synflow(
    run: Run, network: nn.Module, variables: dict[str, Any], options: dict[str, Any]
) -> Any:
    params, collections = _parts(variables)
    shape = np.shape(run.normalise(jnp.asarray(run.dataset.train.images[:1])))
    apply_fn = lambda params, x, collections: network.apply({"params": params, **collections}, x)
    return jaxsparse.synflow_masks(apply_fn, params, shape, collections=collections, **options)


def _magnitude(
    run: Run, network: nn.Module, variables: dict[str, Any], options: dict[str, Any]
) -> Any:
    del run, network
    return jaxsparse.magnitude_masks(variables["params"], **options)


def _random(
    run: Run, network: nn.Module, variables: dict[str, Any], options: dict[str, Any]
) -> Any:
    del network
    return jaxsparse.random_masks(run.key(SCORES), variables["params"], **options)


# By the name of the criterion: (run, network, variables, options) to masks like the params.
_CHOOSE: Mapping[str, Callable[..., Any]] = {
    "snip": _snip,
    "grasp": _grasp,
    "synflow": _synflow,
    "magnitude": _magnitude,
    "random": _random,
}


def _parts(variables: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    others = dict(variables)
    return others.pop("params"), others


def _logits_of(
    run: Run, network: nn.Module, variables: dict[str, Any], *, train: bool
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the network as a function; in training mode the updated statistics are dropped."""
    collections = _parts(variables)[1]
    dropout = {"dropout": run.key(SCORES)}

    def logits(params: Any, images: jax.Array) -> jax.Array:
        given = {"params": params, **collections}
        images = run.normalise(images)
        if not train:
            return jnp.asarray(network.apply(given, images))
        mutable = list(collections)
        found, _ = network.apply(given, images, train=True, mutable=mutable, rngs=dropout)
        return jnp.asarray(found)

    return logits


def _batches(run: Run) -> Callable[[], Iterator[tuple[Any, Any]]]:
    """Returns a function that goes through as many images of each class, in a random order."""
    scoring, (images, labels) = run.scoring, run.dataset.train
    assert scoring is not None
    if run.source is not None:
        num_images = scoring.num_per_class * run.dataset.num_classes
        return functools.partial(_of_first_steps, run, -(-num_images // run.batch_size))
    drawn = jaxsparse.balanced_indices(
        run.key(SCORES), labels, scoring.num_per_class, num_classes=run.dataset.num_classes
    )
    size = len(drawn) if scoring.batch_size is None else scoring.batch_size
    cuts = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    return lambda: ((images[indices], labels[indices]) for indices in cuts)


def _of_first_steps(run: Run, num_steps: int) -> Iterator[tuple[Any, Any]]:
    """Yields the micro-batches of the first steps."""
    for batch in itertools.islice(run.batches(0), num_steps):
        for number in range(run.accumulate):
            yield batch.part(number, run.accumulate).take()
