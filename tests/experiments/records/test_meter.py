import jax.numpy as jnp
import pytest

from experiments.records.meter import Meter


class Clock:
    """A clock that is moved by hand."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class Run:
    """A loop whose batches and steps take given seconds."""

    def __init__(self, batch_size=64):
        self.clock = Clock()
        self.meter = Meter(batch_size, clock=self.clock)
        self.wait = 0.0

    def batches(self):
        number = 0
        while True:
            self.clock.seconds += self.wait
            yield number
            number += 1

    def steps(self, number, *, wait, compute):
        self.wait = wait
        batches = self.batches()
        for expected in range(number):
            assert self.meter.next(batches) == expected
            self.clock.seconds += compute


def test_input_is_the_limit():
    run = Run()
    run.steps(10, wait=0.3, compute=0.1)
    assert str(run.meter) == "160 images a second; input is the limit (waits for input 75 %)"
    assert run.meter.scalars() == pytest.approx({"images_per_second": 160, "input_share": 0.75})


def test_compute_is_the_limit():
    run = Run(batch_size=1024)
    run.steps(10, wait=0.01, compute=0.49)
    assert str(run.meter) == "2,048 images a second; compute is the limit (waits for input 2 %)"


def test_each_look_is_of_the_steps_since_the_last_one():
    run = Run(batch_size=10)
    run.steps(5, wait=1, compute=1)
    assert run.meter.scalars() == pytest.approx({"images_per_second": 5, "input_share": 0.5})
    run.steps(5, wait=0, compute=1)
    assert run.meter.scalars() == pytest.approx({"images_per_second": 10, "input_share": 0})
    assert str(run.meter).startswith("7 images a second; input is the limit (waits for input 33 %)")


def test_pauses_and_what_comes_before_the_first_batch_do_not_count():
    run = Run(batch_size=10)
    run.clock.seconds += 50
    with run.meter.paused():
        run.clock.seconds += 7
    run.steps(1, wait=1, compute=1)
    with pytest.raises(KeyError), run.meter.paused():
        run.clock.seconds += 1000
        raise KeyError
    run.steps(1, wait=1, compute=1)
    assert run.meter.scalars() == pytest.approx({"images_per_second": 5, "input_share": 0.5})


def test_nothing_was_measured():
    run = Run()
    assert str(run.meter) == "no step was measured"
    assert run.meter.scalars() == {}
    with pytest.raises(StopIteration):
        run.meter.next(iter(()))


def test_follow_takes_what_steps_return():
    run = Run()
    for step in range(3):
        run.meter.follow({"loss": jnp.float32(step)})
