"""Options are checked in one way, with one wording."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.checks import check_in, check_whole
from jaxsparse.types import OptionError


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3), jnp.int32(3)])
def test_whole_numbers_of_any_type(value):
    found = check_whole("depth", value, 3, 3)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize(
    ("value", "least", "most", "of", "words"),
    [
        (True, 0, None, "", "depth True must be a whole number, at least 0"),
        (3.0, 0, None, "", "depth 3.0 must be a whole number, at least 0"),
        ("3", 0, None, "", "depth '3' must be a whole number, at least 0"),
        (None, None, None, "", "depth None must be a whole number"),
        (0, 1, None, "steps", "depth 0 must be a whole number of steps, at least 1"),
        (9, None, 8, "", "depth 9 must be a whole number, at most 8"),
        (-1, 0, 2**32 - 1, "", "depth -1 must be a whole number in [0, 4294967295]"),
    ],
)
def test_what_is_no_such_whole_number(value, least, most, of, words):
    with pytest.raises(OptionError) as error:
        check_whole("depth", value, least, most, of=of)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.999), jnp.float32(0)], [1, 1.0, -1e-9, math.nan]),
        ("(0, 1]", [1, 1e-9], [0, 1.0001, -math.inf]),
        ("[0, 1]", [0, 1, True], [-0.1, 1.1, None, "a", math.nan]),
        ("(0, inf)", [1e300], [0, math.inf, math.nan]),
    ],
)
def test_intervals(interval, inside, outside):
    for value in inside:
        assert check_in("share", value, interval) == float(value)
    for value in outside:
        said = repr(value) if isinstance(value, str) else str(value)
        with pytest.raises(OptionError) as error:
            check_in("share", value, interval)
        assert str(error.value) == f"share {said} must be in {interval}"
