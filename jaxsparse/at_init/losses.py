"""Losses that scores are computed from: any function of (params, batch), or a cross entropy."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.checks import check_whole
from jaxsparse.types import OptionError, PyTree

Loss: TypeAlias = Callable[..., jax.Array]
"""(params, batch) -> float[], the mean over the examples of the batch."""


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The mean cross entropy of a classifier, `cross_entropy(logits_fn)`.

    Attributes:
      logits_fn: (params, inputs) -> float[..., classes].
    """

    logits_fn: Callable[[PyTree, Any], jax.Array]

    def __call__(self, params: PyTree, batch: Any, temperature: float = 1.0) -> jax.Array:
        """Returns the mean over all labels of the cross entropy of logits / temperature.

        Args:
          params: of the network.
          batch: (inputs, labels), labels integers in [0, classes).
          temperature: above 0.

        Raises:
          ValueError: the batch is no such pair, or labels and logits do not fit.
        """
        inputs, labels = pair(batch)
        logits = self.logits_fn(params, inputs)
        if jnp.shape(logits)[:-1] != jnp.shape(labels):
            raise ValueError(
                f"logits_fn returns {jnp.shape(logits)} for labels {jnp.shape(labels)}; it must "
                f"return logits of one more axis than the labels, the classes"
            )
        logits = jnp.asarray(logits, jnp.promote_types(jnp.result_type(logits), jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits / temperature, labels).mean()


def cross_entropy(logits_fn: Callable[[PyTree, Any], jax.Array]) -> CrossEntropy:
    """Returns the loss of a classifier, for all scores: it knows the temperature that GraSP needs.

        loss_fn = jaxsparse.cross_entropy(lambda params, x: model.apply({"params": params}, x))
        masks = jaxsparse.grasp_masks(loss_fn, params, [(images, labels)], sparsity=0.9)

    Batches are (inputs, labels) then. A warning names the classes that none of them holds, and
    another says where masks leave no path from input to output.

    Args:
      logits_fn: (params, inputs) -> float[..., classes]; the mode of norms and dropout is its own.
        GraSP's code has batch norms in training mode and drops the updated statistics, SNIP's and
        SynFlow's have them in evaluation mode.

    >>> loss = cross_entropy(lambda params, x: x @ params["kernel"])
    >>> batch = (jnp.ones((4, 2)), jnp.array([0, 1, 2, 0]))
    >>> round(float(loss({"kernel": jnp.zeros((2, 3))}, batch)), 4)  # log(3)
    1.0986
    """
    return CrossEntropy(logits_fn)


def balanced_indices(
    key: jax.Array, labels: Any, num_per_class: int = 10, *, num_classes: int | None = None
) -> np.ndarray:
    """Draws as many examples of every class, in a random order: the batch that GraSP scores on.

    Args:
      key: of the draw.
      labels: int[examples], of the training set, on the host.
      num_per_class: examples of each class, at least 1; 10 as published for CIFAR-10.
      num_classes: number of classes; None is one more than the largest label.

    Returns:
      int64[num_classes * num_per_class], indices of examples, each at most once. The order is
      random, so that micro-batches of it hold a mixture.

    Raises:
      ValueError: a class has fewer examples; names the class and its number.

    Differs from the official code in: that code concatenates the classes in order and cuts the
    batch in two, so that each half holds half of the classes.

    >>> labels = np.array([0, 1, 0, 1, 1, 0])
    >>> sorted(labels[balanced_indices(jax.random.key(0), labels, 2)].tolist())
    [0, 0, 1, 1]
    """
    num = check_whole("num_per_class", num_per_class, 1)
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not labels.size:
        raise ValueError(f"labels are {labels.dtype}{labels.shape}; they must be int[examples]")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    counts = np.bincount(labels, minlength=classes)
    short = np.flatnonzero(counts[:classes] < num)
    if short.size:
        first = short[0]
        wrong = f"is more than class {first} has, {counts[first]} of {len(labels)} examples"
        raise OptionError("num_per_class", num, wrong)
    order = np.asarray(jax.random.permutation(key, len(labels)))
    drawn = [order[labels[order] == label][:num] for label in range(classes)]
    mixed = jax.random.permutation(jax.random.fold_in(key, 1), classes * num)
    return np.concatenate(drawn)[np.asarray(mixed)]


def pair(batch: Any) -> tuple[Any, Any]:
    """Returns the inputs and labels of a batch; raises a ValueError if it is no such pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(f"a batch of cross_entropy is (inputs, labels), not a {type(batch).__name__}")
