"""The code of every page in docs/ runs as written, in order."""

import re
from pathlib import Path

import jax
import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)
