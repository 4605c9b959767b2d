"""The page on ImageNet has the published rows of the code, and its arithmetic is right."""

import math
import re

import pytest

from experiments import imagenet
from experiments.options import cli
from experiments.training.imagenet_recipes import PUBLISHED
from tests.docs.pages import text_of

TEXT = text_of("docs/imagenet.md")
NUM_IMAGES = 1_281_167 * 100


def said(number):
    return "–" if math.isnan(number) else f"{number:g}"


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.name} {row.sparsity:g}")
def test_the_rows_of_the_page_are_those_of_the_code(row):
    cells = [row.name, f"`{row.flags}`", f"{row.sparsity:g}", f"{row.accuracy:g}"]
    cells += [said(row.train_flops), said(row.test_flops), row.source]
    assert f"| {' | '.join(cells)} |\n" in TEXT
    config = cli.parse(imagenet.Config, [*row.flags.split(), f"--sparsity={row.sparsity}"])
    assert imagenet.method_of(config, 32_000).name


def test_no_row_is_missing():
    table = TEXT[TEXT.index("| | flags beside") : TEXT.index("## Cost")]
    assert len(re.findall(r"^\| [A-Za-z]", table, re.MULTILINE)) == len(PUBLISHED)


def test_estimates_follow_from_what_they_are_said_to_follow_from():
    rates = [8_090 * (4 * 275) / (4 * 123), 2_600 * 3.35 / 2.04 * 8]
    assert [round(rate, -2) for rate in rates] == [18_100, 34_200]
    hours = [NUM_IMAGES / rate / 3600 for rate in (rates[0], 16 * rates[0], 8 * rates[0], rates[1])]
    assert [round(x, 2) for x in hours] == [1.97, 0.12, 0.25, 1.04]
    runs = sum(2.5 if "epochs=250" in row.flags else 1 for row in PUBLISHED)
    assert f"{runs:g} runs of 100 epochs" in TEXT
    assert [round(runs * x, 1) for x in hours] == [38.4, 2.4, 4.8, 20.3]
