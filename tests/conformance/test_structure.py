"""With a pattern: masks have it at the start and after every event, and entries really move."""

import jax
import numpy as np
import pytest

import jaxsparse
from tests.conformance.table import CASES, OPTIMIZERS, init, method_of, train
from tests.trees import FIXED, fill, prunable

PATTERNED = ["rigl_n_of_m", "set_itop_block", "gmp_block", "granet_channels", "itop_block_cycles"]


@pytest.mark.parametrize("name", PATTERNED)
def test_masks_have_their_pattern_after_every_event(name, key):
    method, params, num_events = method_of(name), fill(FIXED, 0), 0
    rules = method.pattern
    jaxsparse.check_pattern(init(method, key, params), rules)
    moved = np.zeros(4, int)
    for step in train(method, params, OPTIMIZERS["momentum"], key):
        jaxsparse.check_pattern(step.masks, rules)
        if step.event is not None:
            num_events += 1
            moved += np.asarray(step.event.metrics.num_restarted)
            assert step.event.metrics.num_active.tolist() == [m.sum() for m in prunable(step.masks)]
    assert num_events == len(CASES[name].steps)
    assert jax.tree.leaves(step.masks)[0].dtype == bool
    if name != "gmp_block":
        assert (moved > 0).tolist() == [True, True, False, True]  # the single weight stays
