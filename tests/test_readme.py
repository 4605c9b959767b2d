"""The README is short, names every method and the two commands, and shows the examples' diff.

Its code runs in `tests/docs/test_pages.py`, as that of all pages does.
"""

import difflib
import re

import jaxsparse
from experiments.options.schedules import METHODS
from tests.docs.pages import PAGES, ROOT, marked_block, text_of

README = text_of("README.md")


def test_it_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


def test_it_begins_with_two_commands():
    assert "\nmake demo\n" in README and "\nmake test " in README


def test_it_names_every_method():
    for entry in METHODS.values():
        if entry.factory.__module__.startswith("jaxsparse."):
            assert f"`{entry.factory.__name__}`" in README


def test_its_diff_is_that_of_the_examples():
    names = ("examples/dense_flax.py", "examples/sparse_flax.py")
    scripts = [(ROOT / name).read_text(encoding="utf-8").splitlines() for name in names]
    diff = difflib.unified_diff(*scripts, *names, lineterm="", n=1)
    assert marked_block("README.md", "dense to sparse").splitlines() == list(diff)


PACKAGES = (
    "checkpoint",
    "engine",
    "nn",
    "sparse",
    "structured",
    "studies",
)  # imported on their own


def test_names_of_the_library_in_it_and_in_the_pages_exist():
    for page in PAGES:
        for name in re.findall(r"\bjaxsparse\.(\w+)", text_of(page)):
            assert hasattr(jaxsparse, name) or name in PACKAGES, (
                page,
                name,
            )
