"""Conformance has a row for each kind of method, and more of some kinds: those are variants."""

import pytest

# Rows of the table that CI's second Python runs; the others are marked as variants.
ONE_OF_A_KIND = "gmp granet_st rigl rigl_n_of_m set_itop_block east composed".split()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    from tests.conformance.table import CASES

    variants = set(CASES) - set(ONE_OF_A_KIND)
    for item in items:
        if "conformance" in item.path.parts and hasattr(item, "callspec"):
            if item.callspec.params.get("name") in variants:
                item.add_marker(pytest.mark.variants)
