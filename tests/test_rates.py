"""Learning rates of a run: numbers, schedules, and runs without steps."""

import numpy as np
import optax
import pytest

from jaxsparse.rates import rates_of


@pytest.mark.parametrize("schedule", [0.5, optax.constant_schedule(0.5), lambda step: 0.5])
def test_constant_rates(schedule):
    np.testing.assert_array_equal(rates_of(schedule, 2, 5), [0.5] * 3)
    assert rates_of(schedule, 2, 2).shape == (0,)


def test_a_schedule_at_its_own_steps():
    schedule = optax.piecewise_constant_schedule(1.0, {3: 0.5})
    np.testing.assert_array_equal(rates_of(schedule, 2, 6), [1.0, 0.5, 0.5, 0.5])
