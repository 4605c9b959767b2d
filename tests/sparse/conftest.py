"""Tests that ask for `engine` run with the kernels and with what takes their place."""

import pytest

from jaxsparse.kernels import load as kernels


@pytest.fixture(params=["compiled", "jax"])
def engine(request, monkeypatch):
    """Runs a test with the kernels, which it skips where there are none, and in JAX alone."""
    if request.param == "jax":
        backend = kernels.Backend("jax", "as the test asks")
        monkeypatch.setattr(kernels, "backend", lambda: backend)
    elif kernels.backend().name != "compiled":
        pytest.skip(kernels.backend().why)
    return request.param


@pytest.fixture
def compiled():
    """Runs a test with the kernels, which it skips where there are none."""
    if kernels.backend().name != "compiled":
        pytest.skip(kernels.backend().why)
