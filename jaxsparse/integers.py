"""Whole numbers as people give them: Python's, NumPy's and JAX's, by one rule."""

import operator
from typing import Any

import numpy as np


def whole_number(value: Any) -> int | None:
    """Returns what counts as an index, as Python's int; None for anything else.

    An integer of any type and width counts, and so does an array of one without axes. A bool, a
    float, an array with axes and a traced value do not.

    >>> import numpy as np
    >>> whole_number(np.uint32(4_000_000_000)), whole_number(3.0), whole_number(True)
    (4000000000, None, None)
    """
    if isinstance(value, bool | np.bool_) or np.ndim(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
