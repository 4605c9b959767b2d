"""Groups by tracing: known tables, removal against zeroing, networks of libraries, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.structured import channel_groups
from tests.structured.networks import CASES, W_AND_D, between, ones, table


def example(case):
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape) for path, shape in case.shapes.items()}
    is_ids = case.x == (2, 5)
    x = rng.integers(0, 5, case.x) if is_ids else rng.normal(size=case.x)
    return jax.tree.map(lambda y: jnp.asarray(y, jnp.float32), params), (
        jnp.asarray(x) if is_ids else jnp.asarray(x, jnp.float32)
    )


def groups_of(case):
    abstract = jax.eval_shape(lambda: example(case))
    return channel_groups(case.apply, *abstract, inner=case.inner)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_groups(name):
    assert table(groups_of(CASES[name])) == dict(CASES[name].groups)


def removed(params, group, unit):
    """The parameters without a unit, and those with zeros in its place."""
    narrow, zeroed = ({path: np.array(x) for path, x in params.items()} for _ in range(2))
    for member in group.members:
        at = member.indices[unit]
        narrow[member.path] = np.delete(narrow[member.path], at, member.axis)
        np.moveaxis(zeroed[member.path], member.axis, 0)[at] = 0
    return narrow, zeroed


@pytest.mark.parametrize("name", CASES)
def test_a_network_without_a_unit_computes_what_it_does_with_zeros(name):
    case = CASES[name]
    params, x = example(case)
    for group in groups_of(case):
        for unit in (0, group.width // 2):
            narrow, zeroed = removed(params, group, unit)
            np.testing.assert_allclose(
                case.apply(narrow, x), case.apply(zeroed, x), rtol=1e-4, atol=1e-4
            )


MASK = np.array([1, 1, 0, 1, 1, 0], np.float32)
REFUSED = {
    "a constant that holds the width": (lambda h, p: h * MASK, "a constant array of shape (6,)"),
    "constants side by side": (
        lambda h, p: h * jnp.concatenate([jnp.ones(3), jnp.zeros(3)]),
        "constants put beside each other by concatenate",
    ),
    "a padded constant": (
        lambda h, p: h * jnp.pad(jnp.ones(4), (0, 2)),
        "a single index or a constant padded by pad",
    ),
    "an index": (lambda h, p: h * jnp.arange(6.0), "an iota, which counts the indices"),
    "an unknown operation": (
        lambda h, p: jnp.fft.fft(h).real,
        "fft, which the analysis does not see through",
    ),
    "a write": (
        lambda h, p: h.at[:, 1:3].set(0),
        "scatter, which the analysis does not see through",
    ),
    "a callback": (
        lambda h, p: jax.pure_callback(lambda y: y, ones(2, 6), h),
        "pure_callback, which the analysis does not see through",
    ),
    "a sort": (lambda h, p: jnp.sort(h), "sort runs along it"),
    "a cumulative sum": (lambda h, p: jnp.cumsum(h, 1), "cumsum runs along it"),
    "a search": (lambda h, p: h * jnp.argmax(h, 1)[:, None], "searched by argmax"),
    "a pooling window": (
        lambda h, p: jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 3), (1, 1), "SAME"),
        "a window of reduce_window_sum",
    ),
    "one index": (lambda h, p: h - h[:, :1], "a single index picked by slice"),
    "a crop to one index": (
        lambda h, p: h - jax.lax.pad(h, 0.0, [(0, 0, 0), (-2, -3, 0)]),
        "a single index or a constant padded by pad",
    ),
    "one index that is joined with nothing": (
        lambda h, p: h - jnp.concatenate([h[:, 1:2], h[:, :0]], 1),
        "a single index picked by slice",
    ),
    "a condition": (
        lambda h, p: jax.lax.while_loop(lambda h: h.sum() < 3, lambda h: 2 * h + 1, h),
        "read by the condition of a loop",
    ),
    "an unknown start": (
        lambda h, p: jnp.tile(jax.lax.dynamic_slice_in_dim(h, h.sum().astype(int), 3, 1), (1, 2)),
        "cut at an index by dynamic_slice",
    ),
    "a chain": (
        lambda h, p: h + jnp.pad(h[:, 1:], ((0, 0), (0, 1))),
        "all its indices could only be removed at once",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_axes_that_nothing_is_known_of_stay(name):
    h, reason = REFUSED[name]
    groups = between(h)
    assert len(groups) == 0
    why = {(f.path, f.axis): f for f in groups.frozen}
    for place in [("w", 1), ("d", 0)]:
        assert why[place].reason == reason
        assert why[place].indices.tolist() == list(range(6))
        if "at once" not in reason:
            assert why[place].place.startswith("at test_channel_groups.py:")
    assert f"axis 1 stays whole: {reason}" in groups.explain("w")


def test_a_literal_width_in_a_reshape_is_what_every_reshape_looks_like():
    literal = between(lambda h, p: h.reshape(2, 6))
    assert table(literal) == table(between(lambda h, p: h)) == {"w": (6, "w[1] d[0]")}


NOTED = {
    "layer norm": (
        lambda h, p: h - h.mean(1, keepdims=True),
        "reduce_sum runs over them",
    ),
    "softmax": (lambda h, p: jax.nn.softmax(h), "reduce_max runs over them"),
    "scores": (
        lambda h, p: (h @ h.T) @ h,
        "dot_general sums over them, without weights",
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_else_depends_on_the_width_is_noted(name):
    h, note = NOTED[name]
    groups = between(h)
    assert table(groups) == {"w": (6, "w[1] d[0]")}
    assert groups["w"].notes[0].startswith(f"{note}, at test_channel_groups.py:")
    assert f"Their number matters: {note}" in groups.explain("d")
    assert between(lambda h, p: jax.nn.gelu(h) + h.sum(0)[None])["w"].notes == ()


def test_dropout_ties_nothing():
    def apply(p, x, key):
        h = x @ p["w"]
        return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0) @ p["d"]

    groups = channel_groups(apply, W_AND_D, ones(2, 4), jax.random.key(0))
    assert table(groups) == {"w": (6, "w[1] d[0]")}
    assert "axis 0 stays whole: axis 1 of input 0." in groups.explain("w")


def test_ignored_leaves_stay_with_what_is_tied_to_them():
    params, x = example(CASES["residual"])
    apply = CASES["residual"].apply
    for ignored in (["up"], [("down", 0)], [("bias", -1)]):
        groups = channel_groups(apply, params, x, ignored=ignored)
        assert len(groups) == 0
        name = ignored[0] if isinstance(ignored[0], str) else ignored[0][0]
        assert f"axis 0 stays whole: ignored by {name!r}." in groups.explain("bias")
    assert len(channel_groups(apply, params, x, ignored=[("down", 1)])) == 1
    with pytest.raises(ValueError, match="ignored 'conv' is the first match of no leaf; there are"):
        channel_groups(apply, params, x, ignored=["conv"])
    with pytest.raises(ValueError, match="ignored '\\(' is no regular expression"):
        channel_groups(apply, params, x, ignored=["("])
    with pytest.raises(ValueError, match="ignored 'up' must be a list of path regexes"):
        channel_groups(apply, params, x, ignored="up")
    with pytest.raises(ValueError, match="names axis 1 of bias, which has 1 axes"):
        channel_groups(apply, params, x, ignored=[("bias", 1)])


def test_unused_leaves_and_features_that_are_returned_stay():
    params = W_AND_D | {"unused": ones(3, 3)}
    groups = channel_groups(lambda p, x: (x @ p["w"], x), params, ones(2, 4))
    assert len(groups) == 0
    assert "axis 1 stays whole: axis 1 of output 0." in groups.explain("w")
    assert "axis 0 stays whole: the function does not use the leaf." in groups.explain("unused")


def test_on_a_mesh():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def apply(p, x):
        local = lambda x, p: jax.nn.relu(x @ p["w"]) @ p["d"]
        return jax.shard_map(
            local, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec
        )(x, p)

    assert table(channel_groups(jax.jit(apply), W_AND_D, ones(2, 4))) == {"w": (6, "w[1] d[0]")}
    split = jax.sharding.PartitionSpec(None, "data"), jax.sharding.PartitionSpec("data")

    def by_columns(p, x):
        local = lambda x, w, d: jax.lax.psum(jax.nn.relu(x @ w) @ d, "data")
        specs = (jax.sharding.PartitionSpec(), *split)
        return jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=jax.sharding.PartitionSpec()
        )(x, p["w"], p["d"])

    groups = channel_groups(by_columns, W_AND_D, ones(2, 4))
    assert "axis 1 stays whole: shared by the devices of a shard_map." in groups.explain("w")


def test_positions_stay_with_the_tokens_of_the_input():
    params = {"tokens": ones(9, 6), "positions": ones(3, 6), "d": ones(6, 2)}
    apply = lambda p, ids: (p["tokens"][ids] + p["positions"]).mean(1) @ p["d"]
    groups = channel_groups(apply, params, jax.ShapeDtypeStruct((2, 3), jnp.int32))
    assert table(groups) == {"tokens": (6, "tokens[1] d[0] positions[1]")}
    assert "axis 0 stays whole: axis 1 of the input." in groups.explain("positions")
    assert "axis 0 stays whole: looked up by index, at" in groups.explain("tokens")
