"""Conformance compiles some hundred small programs: XLA optimises none of them."""

import jax
import pytest

# One row of the table for each kind of method; the others are marked as variants.
ONE_OF_A_KIND = (
    "dense static gmp granet_st rigl set snfs rigl_itop rigl_n_of_m set_itop_block east composed"
).split()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    from tests.conformance.table import CASES

    variants = set(CASES) - set(ONE_OF_A_KIND)
    for item in items:
        if "conformance" in item.path.parts and hasattr(item, "callspec"):
            if item.callspec.params.get("name") in variants:
                item.add_marker(pytest.mark.variants)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
