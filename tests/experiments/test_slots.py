"""Tests of experiments.data.slots: what a worker hands on is what it made."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments.data import slots

pytestmark = pytest.mark.skipif(
    not slots.can_be_used(), reason="the system has no anonymous files for another process"
)
SIZE, MOST = 5, 4
ROOT = Path(__file__).parents[2]


class Made(NamedTuple):
    images: np.ndarray
    number: int


def make(number):
    shape = (1 + number % MOST, SIZE, SIZE, 3)
    return Made(np.random.default_rng(number).integers(0, 256, shape, np.uint8), number)


def pair():
    """A worker's function and its parent's."""
    memory = slots.Slots(1, MOST, SIZE)
    return slots.Sender(make, memory.paths, memory.slot_bytes), memory.taken


def same(chunk, number):
    return chunk.number == number and np.array_equal(chunk.images, make(number).images)


def test_slots_are_used_again():
    send, receive = pair()
    places = []
    for number in range(3 * slots.NUM_SLOTS):
        sent = send(number)
        places.append(sent.images)
        received = receive(sent)
        assert same(received, number)
        received.images[...] = 0  # the parent's own
    assert {type(place) for place in places} == {slots.Place}
    assert {place.worker for place in places} == {0}
    assert {place.slot for place in places} == {0}


def test_chunks_that_wait_keep_their_images():
    send, receive = pair()
    waiting = [send(number) for number in range(slots.NUM_SLOTS + 2)]
    assert [isinstance(one.images, slots.Place) for one in waiting] == [
        *[True] * slots.NUM_SLOTS,
        *[False] * 2,
    ]
    assert all(same(receive(one), number) for number, one in enumerate(waiting))
    assert isinstance(send(0).images, slots.Place)


def test_what_a_worker_has_handed_on_outlives_it():
    """The parent may look for the first time when the worker has ended."""
    memory = slots.Slots(2, MOST, SIZE)
    code = (
        "import pickle, sys; from experiments.data.slots import Sender; "
        "from tests.experiments.test_slots import make; Sender.worker = 1; "
        f"send = Sender(make, {memory.paths}, {memory.slot_bytes}); "
        "sys.stdout.buffer.write(pickle.dumps([tuple(send(n).images) for n in (3, 4)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    for number, place in zip((3, 4), pickle.loads(done.stdout), strict=True):
        assert same(memory.taken(Made(slots.Place(*place), number)), number)
    memory.close()
