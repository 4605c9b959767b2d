"""What one operation does to leaves in sight: kept, lost with a reason, used in a product."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxsparse.tracing.axis_operations import (
    CONSTANT,
    OPERATIONS,
    Found,
    Source,
    Value,
    source_of,
    unknown,
)
from jaxsparse.tracing.axis_views import view_of
from jaxsparse.types import KernelAxes

W = Value({"w": view_of((4, 6))}, Source.WEIGHTS)
DATA = Value({}, Source.DATA)
A, X = jnp.ones((4, 6)), jnp.ones((2, 4))
TRANSPOSED = tuple(reversed(view_of((4, 6))))


def done(function, arrays, operands):
    """The outputs of the function's only equation, and what was found."""
    (eqn,) = jax.make_jaxpr(function)(*arrays).eqns
    found = Found({"w": 2}, {}, {})
    operation = OPERATIONS.get(eqn.primitive.name, unknown)
    return operation(eqn, operands, found), found


@pytest.mark.parametrize(
    ("function", "view"),
    [
        (jnp.negative, view_of((4, 6))),
        (lambda w: lax.transpose(w, (1, 0)), TRANSPOSED),
        (lambda w: lax.slice(w, (0, 1), (4, 4)), view_of((4, 3))),
        (lambda w: lax.rev(w, (0,)), view_of((4, 6))),
        (lambda w: lax.reduce_sum_p.bind(w, axes=(0,), out_sharding=None), view_of((4, 6))[1:]),
        (lambda w: lax.concatenate([w, w], 1), view_of((4, 12))),
    ],
)
def test_a_leaf_stays_in_sight(function, view):
    num = len(jax.make_jaxpr(function)(A).eqns[0].invars)
    (value,), found = done(function, [A], [W] * num)
    assert value == Value({"w": view}, Source.WEIGHTS)
    assert not found.uses and not found.others


@pytest.mark.parametrize(
    ("function", "operands", "why"),
    [
        (lax.add, [W, DATA], "joined with data by add"),
        (lambda a, b: lax.concatenate([a, b], 0), [W, DATA], "joined with data by concatenate"),
        (lambda a, b: lax.complex(a, b), [W, CONSTANT], "goes through complex"),
    ],
)
def test_a_leaf_is_lost_with_a_reason(function, operands, why):
    (value,), found = done(function, [A, A], operands)
    assert not value.views and value.source == source_of(operands)
    assert found.others == {"w": why}


def test_a_mask_or_a_scale_keeps_weights_in_sight():
    (value,), found = done(lax.mul, [A, A], [W, DATA])
    assert value == Value(W.views, Source.DATA)
    assert found.others == {"w": "joined with data by mul"}  # the reason if no product follows


@pytest.mark.parametrize(
    ("function", "arrays", "operands", "expected"),
    [
        (lambda x, w: lax.dot(x, w), [X, A], [DATA, W], ((0,), (1,), (), ())),
        (lambda x, w: lax.dot(x, w), [X, A], [CONSTANT, W], ((0,), (1,), (), ())),
        (
            lambda w, x: lax.dot_general(w, x, (((0,), (1,)), ((), ()))),
            [A, X],
            [W, DATA],
            ((0,), (1,), (), ()),
        ),
        (
            lambda w, x: lax.dot_general(w, x, (((1,), (1,)), ((0,), (0,)))),
            [A, jnp.ones((4, 6, 3))],
            [W, DATA],
            ((1,), (), (), (0,)),
        ),
    ],
)
def test_a_product_says_what_the_axes_are(function, arrays, operands, expected):
    (value,), found = done(function, arrays, operands)
    assert value == DATA
    assert found.uses == {"w": {KernelAxes(*expected): None}}


def test_a_product_of_weights_is_no_use():
    (value,), found = done(lax.dot, [A, A.T], [W, Value({}, Source.WEIGHTS)])
    assert value == Value({}, Source.WEIGHTS) and not found.uses
    assert found.others == {"w": "multiplied by other weights before any data"}


def test_data_go_before_weights_before_constants():
    assert source_of([CONSTANT, W]) == Source.WEIGHTS
    assert source_of([CONSTANT, W, DATA]) == Source.DATA
    assert source_of([]) == Source.CONSTANTS


def test_the_first_reason_is_kept():
    found = Found({"w": 2}, {}, {})
    found.lose([W], "first")
    found.lose([W, DATA], "second")
    assert found.others == {"w": "first"}
