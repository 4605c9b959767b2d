"""A run that goes on from a checkpoint is the straight run, to the bit, for every method."""

import jax
import jax.numpy as jnp
import pytest

from jaxsparse.checkpoint import restore_checkpoint, restore_masks, save_checkpoint
from tests.checkpoint.states import bits
from tests.conformance.table import CASES, OPTIMIZERS, Step, alike_are_long, method_of, train
from tests.trees import FIXED, fill

PARTS = ("params", "opt_state", "masks", "observe_state")


def state_of(step: Step):
    return {name: getattr(step, name) for name in PARTS}


@pytest.mark.parametrize("name", alike_are_long(CASES))
def test_a_resumed_run_is_the_straight_run(name, key, tmp_path):
    method, tx, params = method_of(name), OPTIMIZERS["momentum"], fill(FIXED, 0)
    straight = list(train(method, params, tx, key))
    at_hand = jax.tree.map(jnp.zeros_like, state_of(straight[0]))
    for n in (5, 6):  # before an event, and right after it
        save_checkpoint(tmp_path, n, state_of(straight[n - 1]))
        restored = restore_checkpoint(tmp_path, at_hand)
        after = straight[0]._replace(n=restored.step, **restored.state)
        *_, end = train(method, params, tx, key, after)
        assert end.n == straight[-1].n
        assert bits(state_of(end)) == bits(state_of(straight[-1]))
        assert bits(restore_masks(tmp_path, like=params)) == bits(straight[n - 1].masks)
