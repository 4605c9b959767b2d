"""Tables as plain text."""

from jaxsparse.text_table import text_table


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [["layer", "weights", "form"], ["conv1/kernel", "25", "dense"], ["fc", "1,000,000"]]
    assert text_table(rows, "<><") == [
        "layer           weights  form",
        "conv1/kernel         25  dense",
        "fc            1,000,000",
    ]


def test_nothing_and_a_heading_alone():
    assert text_table([]) == []
    assert text_table([["step", "active"]]) == ["step  active"]
