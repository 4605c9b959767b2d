"""The kernels read and write what is theirs, and compute what they should, on random shapes."""

import pytest

from tests.kernels import sanitize


# Each at another level of instructions, from the best one on, where there are so many.
@pytest.mark.processes
@pytest.mark.parametrize(("rank", "sanitizer"), [*enumerate([*sanitize.SANITIZERS, ""])])
def test_clean(rank, sanitizer):
    if why := sanitize.why_not(sanitizer):
        pytest.skip(why)
    levels = sanitize.levels()
    level = levels[min(rank, len(levels) - 1)]
    assert sanitize.run(sanitizer, level, first=0, num=100).startswith("100 seeds")
