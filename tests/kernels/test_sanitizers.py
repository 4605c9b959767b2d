"""On random shapes the kernels stay within their buffers, and their results are right."""

import pytest

from tests.kernels import sanitize


# Each one runs at another level of instructions, from the best one on, if there are enough.
@pytest.mark.processes
@pytest.mark.long  # it compiles the kernels three times
@pytest.mark.parametrize(("rank", "sanitizer"), [*enumerate([*sanitize.SANITIZERS, ""])])
def test_clean(rank, sanitizer):
    if why := sanitize.why_not(sanitizer):
        pytest.skip(why)
    levels = sanitize.levels()
    level = levels[min(rank, len(levels) - 1)]
    assert sanitize.run(sanitizer, level, first=0, num=20).startswith("20 seeds")
