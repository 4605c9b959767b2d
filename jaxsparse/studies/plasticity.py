"""Pruning plasticity: how well a network recovers if it is pruned at some point of its training.

For every checkpoint: prune once, train on for a while, and see how far the accuracy comes back. The
same continuation without pruning is the control.

    study = pruning_plasticity(
        {step: Checkpoint(params, masks) for step, (params, masks) in mine.items()},
        rates=(0.2, 0.5, 0.9),
        train_fn=train_fn,     # (checkpoint, how) -> checkpoint
        eval_fn=eval_fn,       # checkpoint -> accuracy
        grad_fn=grad_fn,       # checkpoint -> gradient, to regenerate
        regenerate=(False, True),
    )
    print(study)

Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021,
section 3.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import numpy as np
import optax

from jaxsparse.checks import check_in
from jaxsparse.counting import num_true
from jaxsparse.masks import apply_masks, dense_masks
from jaxsparse.paths import check_rules, prunable_leaves
from jaxsparse.scores import magnitude
from jaxsparse.studies.prune_once import prune_once
from jaxsparse.studies.results import Cell, How, Plasticity, PlasticityStudy
from jaxsparse.transforms import apply_event
from jaxsparse.types import Event, OptionError, PyTree, Rules, Scope, Score


class Checkpoint(NamedTuple):
    """A network at some point of its training.

    Attributes:
      params: any pytree of arrays.
      masks: bool, like params; None is all True, a dense network.
      opt_state: the state of `masked(tx)`; None if `train_fn` starts a fresh optimizer, as the
        paper's code does.
      rest: whatever else `train_fn` and `eval_fn` need, such as batch statistics and the step.
    """

    params: PyTree
    masks: PyTree | None = None
    opt_state: Any = None
    rest: Any = None


TrainFn: TypeAlias = Callable[[Checkpoint, How], Checkpoint]
Source: TypeAlias = Checkpoint | Callable[[], Checkpoint]


def pruning_plasticity(
    checkpoints: Mapping[Any, Source],
    rates: Sequence[float],
    *,
    train_fn: TrainFn,
    eval_fn: Callable[[Checkpoint], float],
    grad_fn: Callable[[Checkpoint], PyTree] | None = None,
    scopes: Sequence[Scope] = ("layer",),
    regenerate: Sequence[bool] = (False,),
    learning_rates: Sequence[How] = ("frozen",),
    control: bool = True,
    final_gap: bool = False,
    score: Score = magnitude,
    prunable: Rules | None = None,
    tx: optax.GradientTransformation | None = None,
    key: jax.Array | None = None,
    known: Iterable[Plasticity] = (),
    save: Callable[[Plasticity], None] | None = None,
) -> PlasticityStudy:
    """Prunes every checkpoint at every rate, trains on, and compares with training on unpruned.

    All arms get copies of the same checkpoint, so that a `train_fn` which donates or changes its
    arrays does no harm. Data and keys have to follow from the checkpoint (its step in `rest`), not
    from an iterator that goes on from arm to arm: pruned and control arms then see the same.

    Args:
      checkpoints: by name, such as the step; a function without arguments loads one when it is its
        turn.
      rates: shares of the active weights to remove, each in [0, 1).
      train_fn: trains a checkpoint on and returns it; a string says how, see `How`. Inactive
        weights have to stay 0: train with `masked`.
      eval_fn: the accuracy of a checkpoint.
      grad_fn: the dense gradient of a checkpoint; called before the pruning, as the gradient that
        an event of GraNet grows by. Only regrowth and scores other than magnitude need it.
      scopes: "layer", "global", or both; see `prune_once`.
      regenerate: False, True, or both. Weights that regrow start at 0, with slots as new.
      learning_rates: "frozen" (the paper's plasticity), "schedule", or both.
      control: whether to train on without pruning too.
      final_gap: whether to train to the end too, pruned and (with `control`) unpruned.
      score: what an active weight is worth.
      prunable: as in `prunable_paths`.
      tx: the `masked` transformation whose state is `opt_state` of the checkpoints; slots of
        weights that are pruned or regrown start anew.
      key: for a score that draws at random; the same for all prunings.
      known: results from before, which are taken over. With `save` a study that was cut off goes
        on: a checkpoint of which all is known is not even loaded.
      save: called with each new result as soon as it is there.

    Raises:
      ValueError: an option out of its range, no gradient where one is needed, or checkpoints with
        an `opt_state` without `tx`.

    Differs from the official code (whose plasticity study cannot be run as published) in: the
    control arm, and exact counts.

    >>> import jax.numpy as jnp
    >>> start = Checkpoint({"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}, rest=0)
    >>> accuracy = lambda c: float(c.params["kernel"].sum()) / 10 - 0.1 * (c.rest == 0)
    >>> study = pruning_plasticity(
    ...     {0: start}, [0.5], train_fn=lambda c, how: c._replace(rest=1), eval_fn=accuracy
    ... )
    >>> print(study)
    checkpoint  lr      scope  regrown  rate  sparsity     pre  pruned   after  control  ...
    0           frozen  layer  no        0.5    0.5000  0.9000  0.6000  0.7000   1.0000  ...
    """
    cells = _cells(checkpoints, rates, scopes, regenerate, learning_rates)
    if grad_fn is None and (True in regenerate or score is not magnitude):
        raise ValueError("regenerate, and scores other than magnitude, need grad_fn")
    options = {"score": score, "prunable": check_rules(prunable), "key": key}
    found = {result.cell: result for result in known}
    for name, source in checkpoints.items():
        of_this = [cell for cell in cells if cell.checkpoint == name]
        todo = [cell for cell in of_this if cell not in found]
        if not todo:
            continue
        arms = _Arms(source() if callable(source) else source, train_fn, eval_fn, grad_fn, tx)
        arms.take_over([found[cell] for cell in of_this if cell in found])
        for cell in todo:
            found[cell] = _measure(arms, cell, options, control=control, final_gap=final_gap)
            if save is not None:
                save(found[cell])
    return PlasticityStudy(tuple(found[cell] for cell in cells))


def _cells(
    checkpoints: Mapping[Any, Source],
    rates: Sequence[float],
    scopes: Sequence[Scope],
    regenerate: Sequence[bool],
    learning_rates: Sequence[How],
) -> list[Cell]:
    """The prunings of a study in order, checked."""
    for rate in rates:
        check_in("rates", rate, "[0, 1)")
    for name, given, allowed in (
        ("scopes", scopes, get_args(Scope)),
        ("learning_rates", learning_rates, ("frozen", "schedule")),
    ):
        for value in given:
            if value not in allowed:
                raise OptionError(name, value, f"must be of {' and '.join(allowed)}")
    return [
        Cell(name, float(rate), scope, bool(grown), how)
        for name in checkpoints
        for how in learning_rates
        for scope in scopes
        for grown in regenerate
        for rate in rates
    ]


class _Arms:
    """The arms of one checkpoint: it trains and evaluates copies, the unpruned ones once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        train_fn: TrainFn,
        eval_fn: Callable[[Checkpoint], float],
        grad_fn: Callable[[Checkpoint], PyTree] | None,
        tx: optax.GradientTransformation | None,
    ):
        if checkpoint.opt_state is not None and tx is None:
            raise ValueError("a checkpoint has an opt_state: give tx, the masked transformation")
        if checkpoint.masks is None:
            checkpoint = checkpoint._replace(masks=dense_masks(checkpoint.params))
        self.checkpoint, self.tx = checkpoint, tx
        self._train, self._eval, self._grad = train_fn, eval_fn, grad_fn
        self._unpruned: dict[str, float] = {}
        self._grads: PyTree | None = None

    def take_over(self, results: Iterable[Plasticity]) -> None:
        """Remembers the accuracies of the unpruned network that are known."""
        for result in results:
            values = {"pre": result.acc_pre, "end": result.control_end}
            values[result.cell.learning_rate] = result.control_after
            self._unpruned |= {how: x for how, x in values.items() if not math.isnan(x)}

    def evaluate(self, checkpoint: Checkpoint) -> float:
        """The accuracy of a checkpoint."""
        return float(self._eval(_copy(checkpoint)))

    def trained(self, checkpoint: Checkpoint, how: How) -> float:
        """The accuracy of a checkpoint that trains on."""
        return self.evaluate(self._train(_copy(checkpoint), how))

    def unpruned(self, how: How | Literal["pre"]) -> float:
        """The accuracy without pruning, as it is ("pre") or trained on."""
        if how not in self._unpruned:
            start = self.checkpoint
            self._unpruned[how] = self.evaluate(start) if how == "pre" else self.trained(start, how)
        return self._unpruned[how]

    def grads(self) -> PyTree | None:
        """The gradient before the pruning; None if it was not given."""
        if self._grads is None and self._grad is not None:
            self._grads = self._grad(_copy(self.checkpoint))
        return self._grads

    def pruned(self, masks: PyTree, kept: PyTree) -> Checkpoint:
        """The checkpoint after a pruning."""
        params, opt_state = self.checkpoint.params, self.checkpoint.opt_state
        if opt_state is None or self.tx is None:
            params = apply_masks(params, kept)
        else:
            event = Event(masks, kept, metrics=None)  # pyright: ignore[reportArgumentType]
            params, opt_state = apply_event(self.tx, event, params, opt_state)
        return self.checkpoint._replace(params=params, masks=masks, opt_state=opt_state)


def _measure(
    arms: _Arms, cell: Cell, options: Mapping[str, Any], *, control: bool, final_gap: bool
) -> Plasticity:
    before = arms.checkpoint
    needs_grads = cell.regenerate or options["score"] is not magnitude
    masks, kept = prune_once(
        before.params,
        before.masks,
        cell.rate,
        scope=cell.scope,
        regenerate=cell.regenerate,
        grads=arms.grads() if needs_grads else None,
        **options,
    )
    size, *active = _counts((before.masks, masks, kept), options["prunable"])
    start = arms.pruned(masks, kept)
    return Plasticity(
        cell,
        acc_pre=arms.unpruned("pre"),
        acc_pruned=arms.evaluate(start),
        acc_after=arms.trained(start, cell.learning_rate),
        control_after=arms.unpruned(cell.learning_rate) if control else math.nan,
        sparsity_pre=1.0 - active[0] / size,
        sparsity=1.0 - active[1] / size,
        num_pruned=active[0] - active[2],
        acc_end=arms.trained(start, "end") if final_gap else math.nan,
        control_end=arms.unpruned("end") if final_gap and control else math.nan,
    )


def _counts(trees: Iterable[PyTree], prunable: Rules | None) -> Iterator[int]:
    """The number of prunable weights, and that of the True entries in each tree."""
    for number, masks in enumerate(trees):
        leaves = prunable_leaves(masks, prunable).values()
        if number == 0:
            yield sum(int(np.size(mask)) for mask in leaves)
        yield sum(num_true(leaves))


def _copy(checkpoint: Checkpoint) -> Checkpoint:
    """A copy of all arrays; other leaves are shared."""
    own = lambda x: x.copy() if isinstance(x, jax.Array | np.ndarray) else x
    return jax.tree.map(own, checkpoint)
