"""Tables as plain text; every printed table of the library is made here."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], align: str = "<") -> list[str]:
    """Returns the lines of a table; each column is as wide as its widest cell.

    Args:
      rows: the cells as text, the heading first; a row may lack cells at its end.
      align: "<" (left) or ">" (right) for each column; columns beyond its end are right-aligned.

    >>> for line in text_table([["layer", "active"], ["conv1/kernel", "25"], ["fc", "1,000"]]):
    ...     print(line)
    layer         active
    conv1/kernel      25
    fc             1,000
    """
    num = max(map(len, rows), default=0)
    full = [[*row, *[""] * (num - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    sides = align[:num] + ">" * (num - len(align))
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in full
    ]
