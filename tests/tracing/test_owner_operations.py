"""Owners of results against labels that are written out, entry by entry, and moved by NumPy."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.tracing.owner_operations import of_equation
from jaxsparse.tracing.owners import averaged, constant, leaf, mixed

SHAPES = {"a": (4, 6), "b": (4, 6), "c": (2, 3)}
LABELS = {path: np.full(shape, i + 1) for i, (path, shape) in enumerate(SHAPES.items())}


def owners_of(make, leaves=SHAPES):
    """The owners of make(module, leaves), where the module is jax.numpy or NumPy."""
    arrays = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in leaves.items()}
    closed = jax.make_jaxpr(lambda arrays: make(jnp, arrays))(arrays)
    inputs = [leaf(path, leaves[path]) for path in sorted(leaves)]  # as JAX orders a dict

    def run(jaxpr, inputs):
        found = dict(zip(jaxpr.invars, inputs, strict=True))
        of = lambda x: constant(x.aval.shape) if hasattr(x, "val") or x not in found else found[x]
        for eqn in jaxpr.eqns:
            operands = [of(x) for x in eqn.invars]
            is_call = eqn.primitive.name == "jit"
            outputs = (
                run(eqn.params["jaxpr"].jaxpr, operands) if is_call else of_equation(eqn, operands)
            )
            found.update(zip(eqn.outvars, outputs, strict=True))
        return [of(x) for x in jaxpr.outvars]

    (found,) = run(closed.jaxpr, inputs)
    return found


def written_out(owners):
    """The label of every entry; 0 for a constant."""
    number = {path: i + 1 for i, path in enumerate(SHAPES)}
    labels = np.frompyfunc(
        lambda share: sum(number[path] * part for path, part in share.items()), 1, 1
    )
    found = np.asarray(labels(owners.blocks))
    for axis, lengths in enumerate(owners.lengths):
        found = found.repeat(lengths, axis)
    return found.astype(int)


MOVES = {
    "concatenate": lambda xp, x, other: xp.concatenate([x, other[:, : x.shape[1]], x]),
    "stack": lambda xp, x, other: xp.stack([x, xp.zeros(x.shape)], 1).reshape(-1, x.shape[1]),
    "transpose": lambda xp, x, other: x.T,
    "reshape": lambda xp, x, other: x.reshape(2, -1),
    "flat": lambda xp, x, other: x.reshape(-1)[1:-1].reshape(2, -1),
    "slice": lambda xp, x, other: x[1:, ::2],
    "flip": lambda xp, x, other: x[:, ::-1],
    "pad": lambda xp, x, other: xp.pad(x, ((1, 0), (0, 2))),
    "split": lambda xp, x, other: xp.split(x, [x.shape[1] // 2], 1)[1],
    "unstack": lambda xp, x, other: xp.concatenate(
        (jnp.unstack if xp is jnp else list)(x.reshape(2, -1, x.shape[1]))[::-1]
    ),
    "broadcast": lambda xp, x, other: xp.broadcast_to(x[:, None], (len(x), 2, x.shape[1]))[1],
    "moved": lambda xp, x, other: x.reshape(2, -1, x.shape[1]).transpose(1, 2, 0).reshape(-1, 2),
}


@hypothesis.given(st.lists(st.sampled_from(sorted(MOVES)), max_size=6))
def test_entries_keep_their_owner_wherever_they_move(names):
    def make(xp, arrays):
        x = xp.concatenate([arrays["a"], arrays["c"].reshape(1, 6), arrays["b"]])
        for name in names:
            other = xp.concatenate([arrays["b"]] * 7, 1)
            x = MOVES[name](xp, x[: len(x) // 2 * 2, :40], other)[:40]
        return x

    expected, found = make(np, LABELS), owners_of(make)
    np.testing.assert_array_equal(written_out(found), expected)
    assert found.shape == expected.shape and found.entries <= expected.size
    for path, labels in LABELS.items():
        count = np.count_nonzero(expected == labels.flat[0])
        assert mixed(found).get(path, 0) * expected.size == count or not expected.size


def test_cuts_that_are_gone_are_forgotten():
    found = owners_of(lambda xp, x: xp.concatenate([x["a"], x["b"]]).reshape(-1)[24:].reshape(6, 4))
    assert found.blocks.tolist() == [[{"b": 1}]]


@pytest.mark.parametrize("shape", [(0, 6), (4, 0)])
def test_an_empty_leaf_owns_nothing(shape):
    leaves = {"a": shape, "b": (4, 6)}
    both = owners_of(lambda xp, x: xp.concatenate([x["a"], x["b"]], shape.index(0)), leaves)
    assert mixed(both) == {"b": 1} and both.shape == (4, 6)
    none = owners_of(lambda xp, x: x["b"][:, 3:3].reshape(3, 0), leaves)
    assert mixed(none) == {"b": 1} and none.shape == (3, 0)
    row = lambda xp, x: xp.concatenate([x["b"][:0], x["b"][:1]])
    assert mixed(owners_of(lambda xp, x: x["b"] * row(xp, x), leaves)) == {"b": 1}


def share(make, leaves):
    return {path: float(part) for path, part in mixed(owners_of(make, leaves)).items()}


def test_an_entry_of_several_leaves_belongs_to_the_kernel():
    leaves = {"w": (8, 4), "scale": (4,), "bias": (1,), "a": (8, 1), "b": (1, 4)}
    for make in (
        lambda xp, x: x["w"] * x["scale"][None] + x["bias"][None],
        lambda xp, x: x["w"] / xp.linalg.norm(x["w"], axis=0, keepdims=True) * x["scale"][None],
        lambda xp, x: (x["w"] - x["w"].mean(0, keepdims=True)) * 2.0,
        lambda xp, x: x["a"] @ x["b"] + x["w"],
        lambda xp, x: xp.where(x["w"] > x["scale"][None], x["w"], 0.0),
        lambda xp, x: xp.tril(x["w"]),
    ):
        assert share(make, leaves) == {"w": 1.0}


def test_kernels_of_one_size_share_their_sum():
    leaves = {"a": (8, 4), "b": (8, 4), "c": (8, 4)}
    even = {path: pytest.approx(1 / 3) for path in leaves}
    assert share(lambda xp, x: (x["a"] + x["b"] + x["c"]) / 3, leaves) == even
    assert share(lambda xp, x: (x["a"] + (x["b"] + x["c"])) / 3, leaves) == even
    assert share(lambda xp, x: xp.stack([x["a"], x["b"], x["c"]]).mean(0), leaves) == even
    assert share(lambda xp, x: xp.where(x["c"] > 0, x["a"], x["b"]), leaves) == {"a": 0.5, "b": 0.5}


def test_a_sum_goes_by_entries():
    """A 3 x 3 kernel, a 1 x 1 one in its middle, and gates beside them that are joined alike."""
    leaves = {"w": (3, 3), "middle": (1, 1), "q": (3, 1), "k": (3, 2), "gates": (3,)}
    middle = lambda xp, x: x["w"] + xp.pad(x["middle"], 1)
    assert share(middle, leaves) == {"w": 1.0}
    alone = lambda xp, x: xp.zeros((3, 3)) + xp.pad(x["middle"], 1)
    assert share(alone, leaves) == {"middle": pytest.approx(1 / 9)}
    gated = lambda xp, x: xp.concatenate([x["q"], x["k"]], 1) * x["gates"][None]
    assert share(gated, leaves) == {"q": pytest.approx(1 / 3), "k": pytest.approx(2 / 3)}


def test_what_is_written_into_a_constant_has_its_part():
    leaves = {"w": (2, 4)}
    into = lambda xp, x: jnp.zeros((8, 4)).at[3:5].set(x["w"])
    assert share(into, leaves) == {"w": 0.25}
    sliced = lambda xp, x: jax.lax.dynamic_update_slice(jnp.zeros((8, 4)), x["w"], (0, 0))
    assert share(sliced, leaves) == {"w": 0.25}


def test_a_reduction_averages_what_it_reads():
    found = owners_of(lambda xp, x: xp.concatenate([x["a"], x["b"][:2]]).sum(0))
    assert found.blocks.tolist() == [{"a": Fraction(2, 3), "b": Fraction(1, 3)}]
    assert found.entries == 6
    rows = averaged(owners_of(lambda xp, x: xp.concatenate([x["a"], x["b"]])), [1])
    assert rows.blocks.tolist() == [{"a": 1}, {"b": 1}]
