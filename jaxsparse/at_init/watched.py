"""Micro-batches that are looked at on their way to the loss: what they hold, what it returns."""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.at_init.losses import CrossEntropy, Loss, pair
from jaxsparse.at_init.micro_batches import Batches, num_examples, read
from jaxsparse.at_init.subject import Subject, check_loss
from jaxsparse.paths import listed
from jaxsparse.types import PyTree


class Watched:
    """Yields the micro-batches at every call; the first pass checks the loss and the labels.

    Attributes:
      example: shapes of the inputs of one batch of a classifier, known after the first pass; None
        if only the loss is known.
    """

    def __init__(
        self,
        loss_fn: Loss,
        subject: Subject,
        batches: Batches,
        num_reads: int,
        classifier: CrossEntropy | None,
    ):
        self._loss, self._params, self._classifier = loss_fn, subject.params, classifier
        self._again = read(batches, num_reads)
        self._is_first = True
        self.example: Any = None

    def __call__(self) -> Iterator[Any]:
        """Returns an iterator over the micro-batches."""
        if not self._is_first:
            return self._again()
        self._is_first = False
        return self._first_pass()

    def _first_pass(self) -> Iterator[Any]:
        counts = None
        for number, batch in enumerate(self._again()):
            num_examples(batch)
            if self._classifier is not None:
                pair(batch)
            if number == 0:
                check_loss(self._loss, self._params, batch)
            if self._classifier is not None:
                inputs, labels = pair(batch)
                shape = lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
                self.example = jax.tree.map(shape, inputs)
                if jnp.ndim(labels) == 1 and _is_here(labels):
                    if counts is None:
                        counts = np.zeros(_num_classes(self._classifier, self._params, inputs), int)
                    counts += _counted(np.asarray(labels), len(counts))
            yield batch
        if counts is not None and counts.any():
            _warn_of_missing(counts)


def classifier_of(loss_fn: Loss) -> CrossEntropy | None:
    """Returns the loss if it is a cross entropy, which knows logits and labels; else None."""
    return loss_fn if isinstance(loss_fn, CrossEntropy) else None


def _num_classes(classifier: CrossEntropy, params: PyTree, inputs: Any) -> int:
    return jax.eval_shape(classifier.logits_fn, params, inputs).shape[-1]


def _counted(labels: np.ndarray, num_classes: int) -> np.ndarray:
    if wrong := [int(label) for label in labels if not 0 <= label < num_classes]:
        raise ValueError(
            f"a batch has the label {wrong[0]}; labels must be in [0, {num_classes - 1}]"
        )
    return np.bincount(labels, minlength=num_classes)


def _warn_of_missing(counts: np.ndarray) -> None:
    if counts.all():
        return
    missing = np.flatnonzero(counts == 0)
    warnings.warn(
        f"the {counts.sum()} examples of the batches hold none of {len(missing)} of the "
        f"{len(counts)} classes ({listed(map(str, missing))}), so the scores say nothing of these; "
        f"balanced_indices draws as many of each",
        stacklevel=2,
    )


def _is_here(x: Any) -> bool:
    """Whether this process can read all of an array, which nobody can under `jit`."""
    if isinstance(x, Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable
