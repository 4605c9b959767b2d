"""What became of the events of a run: counted, and told in one line each."""

import jax.numpy as jnp
import pytest

import jaxsparse
from jaxsparse.event_counts import (
    UNKNOWN,
    EventCounts,
    counted,
    event_notes,
    no_event,
    num_due,
    unreached,
)

PARAMS = {"kernel": jnp.ones((10, 10))}
RIGL = jaxsparse.rigl(sparsity=0.5, total_steps=12, update_interval=3, stop_step=12)
GMP = jaxsparse.gmp(sparsity=0.8, total_steps=12, update_interval=3)


def counts(taken, left_out=0):
    return EventCounts(jnp.int32(taken), jnp.int32(left_out))


def masks(num_active):
    return {"kernel": (jnp.arange(100) < num_active).reshape(10, 10)}


def test_an_event_is_taken_or_left_out():
    nothing = no_event(2)
    assert nothing.num_active.shape == (2,) and int(nothing.num_left_out) == 0
    events = counted(counts(0), nothing)
    assert [int(x) for x in events] == [1, 0]
    events = counted(events, nothing._replace(num_left_out=jnp.int32(1)))
    assert [int(x) for x in events] == [1, 1]


@pytest.mark.parametrize(("step", "num"), [(0, 0), (2, 0), (3, 1), (5, 1), (6, 2), (8, 2), (9, 3)])
def test_an_event_is_due_from_its_step_on(step, num):
    assert num_due(RIGL, step) == num


@pytest.mark.parametrize(
    ("step", "events", "notes"),
    [
        (9, counts(3), []),
        (2, counts(0), []),
        (9, counts(4), []),  # one more than is due harms nobody
        (9, counts(1), ["1 of the 3 events due by step 9 were taken; the loop has to pass "]),
        (9, counts(2, 1), ["1 of 3 events were left out, because the gradient was not finite"]),
        (9, counts(3, 1), []),  # it was made up for at a later step
        (
            9,
            counts(1, 1),
            ["1 of the 3 events due by step 9 were taken", "1 of 3 events were left out"],
        ),
        (9, counts(UNKNOWN, UNKNOWN), []),  # the checkpoint is from before events were counted
    ],
)
def test_notes_by_eye(step, events, notes):
    found = event_notes(RIGL, step, events, PARAMS, masks(50))
    assert len(found) == len(notes)
    assert all(line.startswith(start) for line, start in zip(found, notes, strict=True))


def test_a_sparsity_that_no_event_will_bring():
    assert unreached(GMP, 5, PARAMS, masks(100)) is None  # an event is still to come
    assert unreached(GMP, 12, PARAMS, masks(20)) is None
    assert unreached(GMP, 12, PARAMS, masks(10)) is None  # sparser than asked for
    last = GMP.timetable.events[-1].step
    line = unreached(GMP, 12, PARAMS, masks(21))
    assert line == (
        f"the sparsity is 0.79, and gmp, whose last pruning event is at step {last}, will not "
        "bring it to 0.8 after step 12; take a method whose stop_step is later"
    )
    assert event_notes(GMP, 12, counts(99), PARAMS, masks(21)) == [line]
    assert unreached(RIGL, 12, PARAMS, masks(100)) is None  # it keeps the number that it was given
