"""Counts where patterns count in groups: shares of the leaves' own shapes, and what is refused."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse

TWO_OF_FOUR = jaxsparse.n_of_m(2, 4)
RUN = {"total_steps": 10, "update_interval": 2}


def planned(method, pattern, **leaves):
    tree = {
        path: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for path, shape in leaves.items()
    }
    rows = jaxsparse.with_pattern(method, pattern).plan(tree).rows
    return [{p.removesuffix("/kernel"): n for p, n in row.layers.items()} for row in rows]


def test_erk_sees_entries_not_groups():
    # eps = .25 * 1280 / (32 + 80) = 2.857: 91.4 of 256 and 228.6 of 1024, in groups of 4. Of the
    # shapes of the groups, (4, 16) and (16, 16), it would be 124 and 196.
    method = jaxsparse.rigl(sparsity=0.75, **RUN)
    first, *_ = planned(method, jaxsparse.block((4, 1)), a=(16, 16), b=(64, 16))
    assert first == {"a": 92, "b": 228}
    gradual = jaxsparse.gmp(sparsity=0.75, scope="layer", **RUN)
    assert planned(gradual, jaxsparse.block((4, 1)), a=(16, 16), b=(64, 16))[-1] == first


def test_regexes_of_distributions_reach_leaves_that_n_of_m_sets_aside():
    rules = [("up", TWO_OF_FOUR)]
    rest = {"head": (8, 10), "out": (10, 10)}
    of = lambda distribution: jaxsparse.rigl(sparsity=0.8, distribution=distribution, **RUN)
    expected, *_ = planned(of(jaxsparse.erk()), jaxsparse.channels(-2), **rest)
    alone = {p: expected[p] for p in rest}
    for distribution in (
        jaxsparse.stacked(jaxsparse.erk(), {"up": 1}),
        jaxsparse.with_overrides(jaxsparse.erk(), {"up": 0.9}),
        jaxsparse.stacked(
            jaxsparse.with_overrides(jaxsparse.erk(), {r"up/kernel\[1\]": 0.9}), {"up": 1}
        ),
    ):
        both = [*rules, ("", jaxsparse.channels(-2))]
        assert planned(of(distribution), both, up=(2, 8, 32), **rest)[0] == {"up": 256, **alone}
    wrong = jaxsparse.stacked(jaxsparse.erk(), {"down": 1})
    with pytest.raises(ValueError, match="stack 'down' is the first match of no leaf"):
        planned(of(wrong), rules, up=(2, 8, 32), **rest)


def test_n_of_m_takes_a_sparsity_that_was_rounded():
    rigl = lambda sparsity: jaxsparse.rigl(sparsity=sparsity, **RUN)
    assert planned(rigl(0.667), jaxsparse.n_of_m(1, 3), a=(9, 4))[0] == {"a": 12}
    assert planned(rigl(0.999), jaxsparse.n_of_m(1, 1000), a=(2000, 4))[0] == {"a": 8}
    # Twice as many as asked for, however small the difference of the sparsities.
    with pytest.raises(ValueError, match="sparsity 0.999 is not possible: .* is sparsity 0.998"):
        planned(rigl(0.999), jaxsparse.n_of_m(1, 500), a=(2000, 4))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_messages_say_what_a_group_is_and_min_keep_as_it_was_given(scope):
    method = jaxsparse.gmp(sparsity=0.97, scope=scope, min_keep=20, **RUN)
    with pytest.raises(
        ValueError,
        match=r"\(a weight is here one group: 4x4 of 16 entries; a minimum of 20 weights is 2 of "
        r"them\)$",
    ):
        planned(method, jaxsparse.block((4, 4)), a=(16, 16), b=(16, 16))
