"""Whether a run has the sparsity that --sparsity asked for."""

SLACK = 0.005
"""A run may be this far from the sparsity asked for and still count as having it."""


def is_as_asked(sparsity: float, asked: float) -> bool:
    """Whether a sparsity counts as the one asked for, both in [0, 1].

    >>> is_as_asked(0.9049, 0.9), is_as_asked(0.895, 0.9), is_as_asked(0.907, 0.9)
    (True, True, False)
    """
    return abs(sparsity - asked) <= SLACK
