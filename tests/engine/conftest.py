"""All tests here need the engine's library."""

import pytest

from jaxsparse.kernels.build import engine_library


@pytest.fixture(autouse=True)
def library() -> None:
    """Skips a test if the engine was not built."""
    if engine_library() is None:
        pytest.skip("the engine was not built")
