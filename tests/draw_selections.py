"""Draws selections at random and compares each with a NumPy oracle; a few of them run as a test.

    python tests/draw_selections.py --draws=100000 --seed=0

A draw has 1 to 3 leaves of 0 to 10,000 scores together, with ties, zeros of both signs, infinities,
NaN and bfloat16 in any mixture, some of them eligible, some given, and k from -1 to beyond their
number, over all leaves or in each. The oracle sorts. Sizes vary by eligibility inside leaves of few
fixed sizes, so that few programs compile.

Every selection is made twice, of scores that are stored and of the same scores as if they had to be
computed: by the kernel, where it is, and by bisection. Both are to give the same masks.
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.load import backend
from jaxsparse.selection.top_k import top_k
from jaxsparse.types import Scores

SIZES = ((0,), (1,), (3, 0), (40,), (100, 1, 60), (1000, 24), (3000, 6000, 1000))


def draw(rng, sizes, dtype):
    """Scores, what is eligible and given, by path, and k: one number, or one a leaf."""
    scores, eligible, given = {}, {}, {}
    for i, size in enumerate(sizes):
        kind = rng.integers(5)
        x = rng.normal(size=size) * 10.0 ** rng.integers(-6, 7)
        if kind == 1:
            x = np.round(3 * rng.normal(size=size))  # many ties
        elif kind == 2:
            x = np.full(size, rng.choice([0.0, 1.0, -2.5, np.inf, -np.inf, np.nan]))
        elif kind == 3:
            x = np.abs(x) * (rng.random(size) < 0.1)  # mostly zeros
        special = rng.random(size) < rng.choice([0.0, 0.01, 0.3])
        x = np.where(special, rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan], size), x)
        scores[str(i)] = np.asarray(jnp.asarray(x, jnp.float32).astype(dtype).astype(jnp.float32))
        eligible[str(i)] = rng.random(size) < rng.choice([0.0, 0.05, 0.5, 1.0])
        given[str(i)] = rng.random(size) < rng.choice([0.0, 0.0, 0.3])
    if rng.integers(2):
        k = {p: int(rng.integers(-1, x.size + 2)) for p, x in scores.items()}
    else:
        k = int(rng.integers(-1, sum(sizes) + 2))
    return scores, eligible, given, k


def is_right(scores, eligible, k, masks):
    """Whether the masks have k True (or all eligible), none below an eligible False."""
    groups = [[p] for p in scores] if isinstance(k, dict) else [list(scores)]
    for group in groups:
        x = np.concatenate([scores[p] for p in group])
        may = np.concatenate([eligible[p] for p in group])
        mask = np.concatenate([np.asarray(masks[p]) for p in group])
        wanted = k[group[0]] if isinstance(k, dict) else k
        # Order: NaN below -inf, -0 equal to 0.
        rank = np.unique(np.where(np.isnan(x), -np.inf, x) + 0.0, return_inverse=True)[1] * 2 + 2
        rank = np.where(np.isnan(x), 0, rank)
        if mask.sum() != np.clip(wanted, 0, may.sum()) or (mask & ~may).any():
            return False
        if mask.any() and (may & ~mask).any() and rank[mask].min() < rank[may & ~mask].max():
            return False
    return True


@functools.partial(jax.jit, static_argnames=("dtype", "computed"))
def select(scores, k, eligible, given, dtype, computed):
    scores = {p: x.astype(dtype) for p, x in scores.items()}
    if computed:
        scores = Scores(scores, lambda scores: {p: 1 * x for p, x in scores.items()})
    return top_k(scores, k, eligible, given=given)


def run(draws, seed):
    """Returns how many selections were wrong, counts of NaN, and selections that differ."""
    rng = np.random.default_rng(seed)
    wrong = wrong_nan = differ = 0
    for number in range(draws):
        sizes = SIZES[rng.integers(len(SIZES))]
        dtype = jnp.bfloat16 if rng.integers(4) == 0 else jnp.float32
        scores, eligible, given, k = draw(rng, sizes, dtype)
        found = select(scores, k, eligible, given, dtype, computed=False)
        others = {p: eligible[p] & ~given[p] for p in scores}
        chosen = {p: np.asarray(mask) & ~given[p] for p, mask in found.masks.items()}
        all_given = all(np.asarray(mask)[given[p]].all() for p, mask in found.masks.items())
        wrong += not all_given or not is_right(scores, others, k, chosen)
        num_nan = {p: int((np.isnan(x) & others[p]).sum()) for p, x in scores.items()}
        wrong_nan += num_nan != dict(zip(scores, found.num_nan.tolist(), strict=True))
        again = select(scores, k, eligible, given, dtype, computed=True)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True)
        differ += not all(np.array_equal(a, b) for a, b in pairs)
        if sys.stderr.isatty() and number % 1000 == 0:
            print(f"\r{number:,} of {draws:,}", end="", file=sys.stderr)
    return wrong, wrong_nan, differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    wrong, wrong_nan, differ = run(flags.draws, flags.seed)
    print(f"{flags.draws:,} draws, seed {flags.seed}, {backend().why}: {wrong} wrong masks,")
    print(f"{wrong_nan} wrong counts of NaN, {differ} differ between kernel and bisection")
    sys.exit(bool(wrong or wrong_nan or differ))
