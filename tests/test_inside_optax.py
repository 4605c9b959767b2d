"""The inside of optax transformations: which take masks, and which optimizers they contain.

That what is refused must be refused, and what is not converges, is in test_optimizers.py.
"""

import functools

import jax.numpy as jnp
import optax
import pytest
from optax import contrib

from jaxsparse.inside_optax import update_with_masks, why_refused

PARAMS = {"kernel": jnp.ones((2, 3))}


def seen(*, takes_others, own=False):
    """A transformation that records its extra arguments, and the list of records."""
    handed = []

    def others(updates, state, params=None, **extra):
        handed.append(sorted(extra))
        return updates, state

    def only_its_own(updates, state, params=None, *, value=None):
        handed.append([] if value is None else ["value"])
        return updates, state

    def none(updates, state, params=None):
        handed.append([])
        return updates, state

    update = others if takes_others else only_its_own if own else none
    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update), handed


IN = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "inner chain": lambda tx: optax.chain(optax.identity(), optax.chain(tx, optax.clip(1.0))),
    "partition": lambda tx: optax.partition({"all": tx}, {"kernel": "all"}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "its transformation": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "if finite": lambda tx: optax.apply_if_finite(tx, 3),
    "partial": lambda tx: tx._replace(update=functools.partial(tx.update)),
}


@pytest.mark.parametrize("place", IN)
@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ({"takes_others": True}, {}, ["masks"]),
        ({"takes_others": True}, {"value": 1.0}, ["masks", "value"]),
        ({"takes_others": False, "own": True}, {}, []),
        ({"takes_others": False, "own": True}, {"value": 1.0}, ["value"]),
    ],
)
def test_masks_go_where_they_are_taken(place, kind, extra, expected):
    leaf, handed = seen(**kind)
    tx = IN[place](leaf)
    update_with_masks(tx)(PARAMS, tx.init(PARAMS), PARAMS, masks=PARAMS, **extra)
    assert handed and handed[-1] == expected


def test_an_update_without_extra_arguments_is_handed_none():
    tx, handed = seen(takes_others=False)
    plain = optax.GradientTransformation(*tx)
    update_with_masks(plain)(PARAMS, (), PARAMS, masks=PARAMS, value=1.0)
    assert handed == [[]]


def test_an_argument_that_nobody_takes_is_an_error_as_in_optax():
    tx, _ = seen(takes_others=False, own=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'valeu'"):
        update_with_masks(tx)(PARAMS, (), PARAMS, masks=PARAMS, valeu=1.0)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adabelief(0.1),  # the state of ACProp
        contrib.adopt(0.1),  # clips
        optax.chain(optax.clip(1.0), contrib.scale_by_adopt(use_clipping=True)),
        optax.inject_hyperparams(optax.adabelief)(0.1),
        optax.MultiSteps(contrib.adopt(0.1), 2),
        optax.rprop(0.1),
    ],
)
def test_relatives_are_not_refused(tx):
    assert why_refused(tx, tx.init(PARAMS)) is None
