"""Splits: which factor of an axis carries its units, such as whole heads of an attention.

Removal of channel c from (H, D) = (4, 16) is removal of a head, a block of 16 channels, or of an
index within every head, a strided set of 4. If both were allowed on one axis, all its channels
would be one class. So one factor carries the units, and the others stay whole:

 * the only one that is not frozen, such as the channels of (height, width, channels);
 * else the one whose removal is exact: no reduction or scale depends on its size;
 * else the one that fits what is known of the axis already;
 * else the outermost: whole heads, whole groups of a norm or of a convolution.

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
    left = record.splits
    while left:
        undecided = [split for split in left if not _is_settled(record.units, split)]
        if len(undecided) == len(left):
            _choose(record, undecided[0], inner)
        left = undecided


def _is_settled(units: Units, split: Split) -> bool:
    """Settles a split of which at most one factor is free; returns whether it could."""
    whole, factors = split.whole, split.factors
    live = _live(units, split)
    if whole is not None and not units.is_free(whole).any():
        for i in live:
            factor = factors[i]
            assert factor is not None
            units.join(factor, whole[:1])
        return True
    if len(live) > 1:
        return False
    if whole is None:
        return True
    if not live:
        units.freeze(whole, _why_frozen(units, split))
    else:
        _carry(units, split, live[0])
    return True


def _live(units: Units, split: Split) -> list[int]:
    """Returns the factors that are not frozen as a whole."""
    pairs = enumerate(split.factors)
    return [i for i, axis in pairs if axis is not None and units.is_free(axis).any()]


def _why_frozen(units: Units, split: Split) -> Reason:
    frozen = [axis for axis in split.factors if axis is not None]
    return units.reason(int(frozen[0][0])) if frozen else split.what


def _carry(units: Units, split: Split, factor: int) -> None:
    """Joins every index of a factor with the indices of the axis that it stands for."""
    axis = split.factors[factor]
    assert split.whole is not None and axis is not None
    blocks = np.moveaxis(split.whole.reshape(split.sizes), factor, 0)
    units.join(blocks.reshape(len(axis), -1), axis[:, None])


def _choose(record: Record, split: Split, inner: bool) -> None:
    """Freezes all factors but the best one."""
    units = record.units
    noted = np.concatenate([axis for axis, _ in record.notes] or [np.zeros(0, int)])
    noted = units.roots(noted)

    def badness(i: int) -> tuple[bool, bool, int]:
        axis = split.factors[i]
        assert axis is not None
        is_noted = bool(np.isin(units.roots(axis), noted).any())
        return is_noted and not inner, not _fits(units, split, i), -i if inner else i

    best, *others = sorted(_live(units, split), key=badness)
    what = f"{split.what.what}: whole indices of the factor {split.sizes[best]} are removed"
    for i in others:
        axis = split.factors[i]
        assert axis is not None
        units.freeze(axis, Reason(what, split.what.place))


def _fits(units: Units, split: Split, factor: int) -> bool:
    """Whether the factor's indices stay apart, however those of the axis are joined already."""
    axis = split.factors[factor]
    assert axis is not None
    if split.whole is None:
        return True
    _, labels = np.unique(units.roots(np.concatenate([split.whole, axis])), return_inverse=True)
    trial = Units()
    trial.new(int(labels.max()) + 1)
    whole, along = labels[: len(split.whole)], labels[len(split.whole) :]
    _carry(trial, split._replace(whole=whole, factors=_replaced(split, factor, along)), factor)
    return len(np.unique(trial.roots(along))) == len(np.unique(along))


def _replaced(split: Split, factor: int, axis: np.ndarray) -> tuple[np.ndarray | None, ...]:
    return (*split.factors[:factor], axis, *split.factors[factor + 1 :])
