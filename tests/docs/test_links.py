"""What a page points to exists: relative links, headings of this page, and paths of files."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, text_of

DOCUMENTS = (*PAGES, "CONTRIBUTING.md", "experiments/README.md", "benchmarks/README.md")
# Made by runs, by users or by the build.
MADE = re.compile(r"^(data|runs|results/mine|experiments/results/mine)\b")
FOLDERS = "jaxsparse|experiments|examples|tests|benchmarks|docs"
ENDINGS = "py|md|h|c|cc|svg|png|json"


def _prose(document: str) -> str:
    """The text without blocks of code, whose paths may be those of a user."""
    return re.sub(r"```.*?```", "", text_of(document), flags=re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = _prose(document)
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert ((ROOT / document).parent / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document):
    """Paths from the root (`jaxsparse/stages.py`, `tests/docs/`), also in commands."""
    text = text_of(document)
    found = re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*(?:\.(?:{ENDINGS})|/))(?![\w*])", text)
    modules = re.findall(r"python -m ((?:jaxsparse|benchmarks)[\w.]+)", text)
    for path in (name.replace(".", "/") for name in modules):
        found.append(f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py")
    for path in found:
        assert MADE.match(path) or (ROOT / path).exists(), path
