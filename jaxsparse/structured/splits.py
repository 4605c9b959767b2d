"""Splits: which factor of an axis carries its units, such as whole heads of an attention.

Removal of channel c from (H, D) = (4, 16) is removal of a head, a block of 16 channels, or of an
index within every head, a strided set of 4. If both were allowed on one axis, all its channels
would be one class. So one factor carries the units, and the others stay whole:

 * the only one that is not frozen, such as the channels of (height, width, channels);
 * else the one whose removal is exact: no reduction or scale depends on its size;
 * else the one that fits what is known of the axis already;
 * else the outermost: whole heads, whole groups of a norm or of a convolution.

A factor along which entries are only repeated, as by `jnp.repeat`, follows the others: it carries
units if those gave way to a factor of another split, inside the groups of a norm, say.

A choice freezes factors, which may decide other splits. So splits are settled to a fixed point,
and one is chosen at a time, in the order of the program.
"""

import numpy as np

from jaxsparse.structured.record import Record, Split
from jaxsparse.structured.units import Reason, Units


def settle(record: Record, *, inner: bool) -> None:
    """Chooses the factor of every split, and joins or freezes units accordingly.

    Args:
      record: of the whole function, its outputs frozen.
      inner: take the innermost factor that fits, whatever depends on its size.
    """
    units, left = record.units, record.splits
    while left:
        undecided = [split for split in left if not _is_settled(units, split)]
        if len(undecided) == len(left):
            # Repeated entries can follow any choice, so they wait until there is no other.
            several = [split for split in undecided if len(_live(units, split)) > 1]
            if several:
                _choose(record, several[0], inner)
            else:
                last = undecided.pop(0)
                _carry(units, last, *_live(units, last))
        left = undecided


def _is_settled(units: Units, split: Split) -> bool:
    """Settles a split that leaves no choice; returns whether it could."""
    whole, factors = split.whole, split.factors
    live, repeated = _live(units, split), _repeated(split)
    if whole is not None and not units.is_free(whole).any():
        for i in live:
            units.join(_factor(split, i), whole[:1])
        return True
    if whole is None or len(live) > 1:
        return len(live) < 2
    if live and not repeated:
        _carry(units, split, *live)
    elif not live:
        frozen = [units.reason(int(axis[0])) for axis in factors if axis is not None]
        if repeated and all(reason.is_choice for reason in frozen):
            again = units.new(split.sizes[repeated[0]])
            _carry(units, _with_factor(split, repeated[0], again), repeated[0])
        else:
            units.freeze(whole, frozen[0] if frozen else split.what)
    return not live or not repeated


def _live(units: Units, split: Split) -> list[int]:
    """Returns the factors that are not frozen as a whole."""
    pairs = enumerate(split.factors)
    return [i for i, axis in pairs if axis is not None and units.is_free(axis).any()]


def _repeated(split: Split) -> list[int]:
    """Returns the factors along which entries are repeated, as by `jnp.repeat`."""
    pairs = enumerate(zip(split.factors, split.sizes, strict=True))
    return [i for i, (axis, size) in pairs if axis is None and size > 1]


def _factor(split: Split, i: int) -> np.ndarray:
    axis = split.factors[i]
    assert axis is not None
    return axis


def _with_factor(split: Split, i: int, axis: np.ndarray) -> Split:
    return split._replace(factors=(*split.factors[:i], axis, *split.factors[i + 1 :]))


def _carry(units: Units, split: Split, i: int) -> None:
    """Joins every index of a factor with the indices of the axis that it stands for."""
    axis = _factor(split, i)
    assert split.whole is not None
    blocks = np.moveaxis(split.whole.reshape(split.sizes), i, 0)
    units.join(blocks.reshape(len(axis), -1), axis[:, None])


def _choose(record: Record, split: Split, inner: bool) -> None:
    """Freezes all factors but the best one."""
    units = record.units
    noted = np.concatenate([axis for axis, _ in record.notes] or [np.zeros(0, int)])
    noted = units.roots(noted)

    def badness(i: int) -> tuple[bool, bool, int]:
        is_noted = bool(np.isin(units.roots(_factor(split, i)), noted).any())
        return is_noted and not inner, not _fits(units, split, i), -i if inner else i

    best, *others = sorted(_live(units, split), key=badness)
    what = f"{split.what.what}: whole indices of the factor {split.sizes[best]} are removed"
    for i in others:
        units.freeze(_factor(split, i), Reason(what, split.what.place, is_choice=True))


def _fits(units: Units, split: Split, i: int) -> bool:
    """Whether the factor's indices stay apart, however those of the axis are joined already."""
    if split.whole is None:
        return True
    both = units.roots(np.concatenate([split.whole, _factor(split, i)]))
    _, labels = np.unique(both, return_inverse=True)
    whole, along = labels[: len(split.whole)], labels[len(split.whole) :]
    trial = Units()
    trial.new(int(labels.max()) + 1)
    _carry(trial, _with_factor(split._replace(whole=whole), i, along), i)
    return len(np.unique(trial.roots(along))) == len(np.unique(along))
