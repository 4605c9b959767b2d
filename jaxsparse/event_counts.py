"""Counts of a run's events: how many were taken, left out, or forgotten by the loop."""

from bisect import bisect_right
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.masks import num_active
from jaxsparse.method import Method
from jaxsparse.types import EventMetrics, PyTree

UNKNOWN = -(2**30)
"""Stands for a count that is not known: the checkpoint is older than the counting of events."""


class EventCounts(NamedTuple):
    """Numbers of events so far.

    Attributes:
      num_taken: int32[], events that were carried out.
      num_left_out: int32[], events left out because the gradient of their step was not finite.
    """

    num_taken: jax.Array
    num_left_out: jax.Array


def no_event(num_leaves: int) -> EventMetrics:
    """Returns the event metrics of a run before its first event: zeros."""
    leaves = [jnp.zeros(num_leaves, jnp.int32) for _ in range(5)]
    return EventMetrics(*leaves, num_left_out=jnp.zeros((), jnp.int32))


def counted(events: EventCounts, metrics: EventMetrics) -> EventCounts:
    """Returns the counts after one more event."""
    left_out = metrics.num_left_out
    return EventCounts(events.num_taken + 1 - left_out, events.num_left_out + left_out)


def num_due(method: Method, step: int) -> int:
    """Returns how many events the timetable has up to and including a step."""
    return bisect_right(method.timetable.events, step, key=lambda event: event.step)


def event_notes(
    method: Method, step: int, events: EventCounts, params: PyTree, masks: PyTree
) -> list[str]:
    """Returns messages about events that did not happen; waits for the device.

    Args:
      method: the method.
      step: number of completed steps.
      events: the counts after `step`.
      params: only their shapes are used.
      masks: the masks after `step`.

    Returns:
      At most three lines: the loop did not ask for some events; events were left out because the
      gradient was not finite; the final sparsity is not reached, and no event is left to reach it.
    """
    taken, left_out, due = int(events.num_taken), int(events.num_left_out), num_due(method, step)
    notes = []
    left_out = min(left_out, due - taken)  # the others were made up for at a later step
    if taken >= 0 and taken + left_out < due:
        notes.append(
            f"{taken} of the {due} events due by step {step:,} were taken; the loop has to pass "
            "event=method.is_due(n)"
        )
    if taken >= 0 and left_out > 0:
        notes.append(
            f"{left_out} of {due} events were left out, because the gradient was not finite"
        )
    if missed := unreached(method, step, params, masks):
        notes.append(missed)
    return notes


def unreached(method: Method, step: int, params: PyTree, masks: PyTree) -> str | None:
    """Returns a message if no event after `step` can reach the final sparsity, else None.

    A method of constant sparsity keeps the number of weights that it is given: always None.
    """
    steps = [event.step for event in method.timetable.events if event.density is not None]
    if not steps or steps[-1] > step:
        return None
    end = method.plan(params).rows[-1]
    active = num_active(masks, method.prunable)
    if active <= end.num_active:
        return None
    size = max(sum(end.layers.values()) / max(end.density, 1e-30), 1)
    return (
        f"the sparsity is {1 - active / size:.4g}, and {method.name}, whose last pruning event is "
        f"at step {steps[-1]:,}, will not bring it to {1 - end.density:.4g} after step {step:,}; "
        "take a method whose stop_step is later"
    )
