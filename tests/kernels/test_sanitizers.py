"""The kernels read and write what is theirs, on random shapes."""

import pytest

from tests.kernels import sanitize


@pytest.mark.processes
@pytest.mark.parametrize("sanitizer", sanitize.SANITIZERS)
def test_clean(sanitizer):
    if why := sanitize.why_not(sanitizer):
        pytest.skip(why)
    level, *_ = sanitize.levels()
    assert sanitize.run(sanitizer, level, first=0, num=100).startswith("100 seeds")
