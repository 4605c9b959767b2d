"""Leaves whose gradient is their next value, such as Flax's fp8 scales."""

import pytest
from flax.core import FrozenDict

from jaxsparse.overwritten import OVERWRITTEN, has_overwritten, trained_part, with_trained

PLAIN = {"kernel": 1.0}


@pytest.mark.parametrize("kind", [dict, FrozenDict])
def test_scales_are_replaced_by_their_gradient(kind):
    variables = kind({"params": PLAIN, OVERWRITTEN: {"scale": 2.0}})
    grads = kind({"params": {"kernel": 0.5}, OVERWRITTEN: {"scale": 3.0}})
    assert has_overwritten(variables)
    assert trained_part(variables) == PLAIN
    after = with_trained(variables, grads, {"kernel": 0.9})
    assert type(after) is kind
    assert after == {"params": {"kernel": 0.9}, OVERWRITTEN: {"scale": 3.0}}


@pytest.mark.parametrize("tree", [PLAIN, [1.0], 1.0, {"params": PLAIN}])
def test_a_tree_without_them_is_trained_as_a_whole(tree):
    assert not has_overwritten(tree)
    assert trained_part(tree) is tree
    after = ["new"]
    assert with_trained(tree, "grads", after) is after
