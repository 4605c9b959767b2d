"""The README's picture is drawn from the numbers that experiments/README.md prints."""

import runpy

from tests.docs.pages import ROOT, text_of

PICTURE = runpy.run_path(str(ROOT / "docs" / "picture.py"))


def test_its_points_are_in_the_tables():
    tables = text_of("experiments/README.md")
    for panel in PICTURE["PANELS"]:
        found = PICTURE["points"](panel)
        for method in panel.methods:
            for _, (mean, sd, _) in found[method]:
                if sd > 0:  # networks that are cut stand in the table as such
                    assert f"{mean:.2f} ± {sd:.2f}" in tables, (method, mean, sd)


def test_it_is_small_and_drawn_for_light_and_dark_pages(tmp_path):
    PICTURE["main"](tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"accuracy-light.svg", "accuracy-dark.svg"}
    for name in names:
        assert f"docs/{name}" in text_of("README.md")
        assert (ROOT / "docs" / name).stat().st_size < 150_000
