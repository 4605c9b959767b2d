"""Tests of experiments.data.slots: what a worker hands on is what it made."""

from typing import NamedTuple

import numpy as np
import pytest

from experiments.data import slots

pytestmark = pytest.mark.skipif(
    not slots.can_be_used(), reason="the system has no anonymous files for another process"
)
SIZE, MOST = 5, 4


class Made(NamedTuple):
    images: np.ndarray
    number: int


def make(number):
    shape = (1 + number % MOST, SIZE, SIZE, 3)
    return Made(np.random.default_rng(number).integers(0, 256, shape, np.uint8), number)


def same(chunk, number):
    return chunk.number == number and np.array_equal(chunk.images, make(number).images)


def test_slots_are_used_again():
    send, receive = slots.Sender(make, MOST, SIZE), slots.Receiver()
    places = []
    for number in range(3 * slots.NUM_SLOTS):
        sent = send(number)
        places.append(sent.images)
        received = receive(sent)
        assert same(received, number)
        received.images[...] = 0  # the parent's own
    assert {type(place) for place in places} == {slots.Place}
    assert len({place.file for place in places}) == 1
    assert {place.slot for place in places} == {0}


def test_chunks_that_wait_keep_their_images():
    send, receive = slots.Sender(make, MOST, SIZE), slots.Receiver()
    waiting = [send(number) for number in range(slots.NUM_SLOTS + 2)]
    assert [isinstance(one.images, slots.Place) for one in waiting] == [
        *[True] * slots.NUM_SLOTS,
        *[False] * 2,
    ]
    assert all(same(receive(one), number) for number, one in enumerate(waiting))
    assert isinstance(send(0).images, slots.Place)


def test_a_worker_that_ended_loses_nothing_that_was_opened():
    send, receive = slots.Sender(make, MOST, SIZE), slots.Receiver()
    receive(send(0))
    sent = send(1)
    del send
    assert same(receive(sent), 1)
