"""The page on jaxpruner tells of every key and algorithm; its code runs in `test_pages.py`."""

import re

import jaxsparse
from jaxsparse.compat.config import Config, all_algorithm_names
from tests.docs.pages import text_of

PAGE = text_of("docs/from_jaxpruner.md")


def test_it_names_what_is_served():
    keys = set(Config._fields) - {"pattern", "fixed_density"} | {"sparsity_type"}
    for name in (*keys, *all_algorithm_names()):
        assert f"`{name}`" in PAGE


def test_its_names_of_ours_exist():
    for name in re.findall(r"`(\w+)\(", PAGE):
        if name not in ("RigL", "print"):
            assert hasattr(jaxsparse, name), name
