"""The timed steps leave the networks as they are; how long they take is no matter here."""

import jax
import numpy as np
import pytest

from experiments.structured import speed
from experiments.structured.arms import ARMS
from experiments.structured.setting import Stretch
from tests.experiments.structured.tiny import BASE, STEPS, make_setting, reached

pytestmark = pytest.mark.variants


def test_both_networks_take_steps_of_their_own():
    setting = make_setting(timed_steps=2)
    base = reached(setting)
    begun = ARMS["l1"].begin(setting, base, Stretch(0.5, BASE + STEPS))
    narrow = begun.narrow(base._replace(model=begun.model, state=begun.state))
    trees = (base.state.variables, narrow.variables)
    before = jax.tree.map(np.array, trees)
    found = speed.step_seconds(setting, base.state.variables, narrow)
    assert found["speedup"] == found["step_seconds_before"] / found["step_seconds"] > 0
    jax.tree.map(np.testing.assert_array_equal, trees, before)
    assert speed.step_seconds(setting._replace(timed_steps=0), base.state.variables, narrow) == {}
