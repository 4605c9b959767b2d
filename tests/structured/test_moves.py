"""Moved units are where the entries go: the moves themselves are the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.structured import channel_groups
from tests.structured.networks import between, ones

PERMUTATION = np.array([3, 1, 2, 0, 5, 4])
MOVED = {
    "constant indices": lambda h: h[..., PERMUTATION],
    "some constant indices": lambda h: h[..., np.array([5, 0, -2])],
    "take": lambda h: jnp.take(h, PERMUTATION, -1),
    "slice": lambda h: h[..., 1:6:2],
    "dynamic slice": lambda h: jax.lax.dynamic_slice_in_dim(h, 2, 3, -1),
    "roll": lambda h: jnp.roll(h, 2, -1),
    "flip": lambda h: h[..., ::-1],
    "tile": lambda h: jnp.tile(h, 2),
    "repeat": lambda h: jnp.repeat(h, 2, -1),
    "split and swapped": lambda h: jnp.concatenate(jnp.split(h, [2], -1)[::-1], -1),
    "stacked": lambda h: jnp.stack([h, h[..., ::-1]], -1).reshape(*h.shape[:-1], -1),
}


@pytest.mark.parametrize("name", MOVED)
def test_moved_units_are_where_the_entries_go(name):
    move = MOVED[name]
    comes_from = np.asarray(move(jnp.arange(6)[None])[0])  # the function itself is the oracle
    params = {"w": ones(4, 6), "d": ones(len(comes_from), 2)}
    groups = channel_groups(lambda p, x: move(x @ p["w"]) @ p["d"], params, ones(2, 4))
    (found,) = {tuple(m.path for m in group.members) for group in groups if len(group.members) > 1}
    assert found == ("w", "d")
    for group in groups:
        if len(group.members) > 1:
            w, d = group.members
            for of_w, of_d in zip(w.indices, d.indices, strict=True):
                assert of_d.tolist() == np.flatnonzero(np.isin(comes_from, of_w)).tolist()
    tied = [m.indices.ravel() for group in groups for m in group.members if m.path == "d"]
    assert sorted(np.concatenate(tied)) == list(range(len(comes_from)))


def test_cuts_at_fixed_places_are_named():
    halves = between(lambda h, p: jnp.concatenate(jnp.split(h, 2, 1)[::-1], 1))
    assert halves["w"].cuts[0].startswith("split cuts them, at test_moves.py:")
    assert "Their places matter: split cuts them, at" in halves.explain("d")
    padded = between(lambda h, p: jnp.pad(h[:, :3], ((0, 0), (0, 3))))
    assert [len(group.cuts) for group in padded] == [2, 1, 1]
    assert between(lambda h, p: h[:, :6].reshape(2, 6))["w"].cuts == ()


def tied_by_random_moves(seed, h):
    """Moves, sums and joins arrays of hidden values, all of them linear with weights 0 and 1."""
    rng, made = np.random.default_rng(seed), [h]
    for _ in range(5):
        x = made[rng.integers(len(made))]
        n = x.shape[-1]
        cut, alike = rng.integers(2, n - 1), [y for y in made if y.shape[-1] == n]
        moves = [
            lambda x=x: x[:, ::-1],
            lambda x=x, n=n: x[:, int(rng.integers(2)) : n : 2] if n > 4 else x,
            lambda x=x: jnp.concatenate([x, made[rng.integers(len(made))]], 1),
            lambda x=x: jnp.pad(x, ((0, 0), (int(rng.integers(3)), int(rng.integers(3))))),
            lambda x=x, n=n: x[:, rng.integers(0, n, 6)],
            lambda x=x, cut=cut: jnp.concatenate(jnp.split(x, [cut], 1)[::-1], 1),
            lambda x=x, alike=alike: x + alike[rng.integers(len(alike))],
        ]
        moved = moves[rng.integers(len(moves))]()
        made.append(moved if moved.shape[1] > 3 else x)
    return made[-1]


def test_random_moves_tie_what_reaches_each_other():
    for seed in range(12):
        num = 4 + seed % 3
        reaches = np.asarray(tied_by_random_moves(seed, jnp.eye(num))) > 0
        params = {"w": ones(3, num), "d": ones(reaches.shape[1], 2)}
        apply = lambda p, x, seed=seed: tied_by_random_moves(seed, x @ p["w"]) @ p["d"]
        groups, seen = channel_groups(apply, params, ones(2, 3)), []
        for group in groups:
            indices = {m.path: m.indices for m in group.members}
            none = np.zeros((group.width, 0), int)
            pairs = zip(indices.get("w", none), indices.get("d", none), strict=True)
            for w, d in pairs:  # all that a unit of w reaches is in its class, and nothing else
                assert set(np.flatnonzero(reaches[w].any(0))) <= set(d)
                assert set(np.flatnonzero(reaches[:, d].any(1))) <= set(w)
                seen += d.tolist()
        frozen = [f.indices for f in groups.frozen if (f.path, f.axis) == ("d", 0)]
        assert sorted([*seen, *np.concatenate([*frozen, np.zeros(0, int)])]) == [
            *range(reaches.shape[1])
        ]
