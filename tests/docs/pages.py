"""The README and the pages under docs/: their text, and what their code leaves behind."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def marked_block(page: str, mark: str) -> str:
    """The block of code behind the comment `<!-- mark -->`."""
    return re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", text_of(page), re.DOTALL)[1]


def run(page: str) -> list[dict]:
    """Runs a page's blocks of Python in order; returns the names that there are after each."""
    names: dict = {}
    after = []
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for block in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL):
            exec(compile(block, page, "exec"), names)
            after.append(dict(names))
    return after
