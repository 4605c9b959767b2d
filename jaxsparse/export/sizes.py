"""Sizes of a sparse model in bytes, leaf by leaf."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxsparse.text_table import text_table

Form: TypeAlias = Literal["dense", "csr", "bits"]


class LeafSize(NamedTuple):
    """Sizes of one leaf of a file.

    Attributes:
      path: path of the leaf.
      shape: shape of the leaf.
      form: "dense" for all weights; "csr" for active weights with their rows and columns; "bits"
        for active weights and one bit for every weight.
      num_active: number of active weights.
      size: number of all weights.
      dense_bytes: bytes of the leaf if stored dense.
      stored_bytes: bytes of the leaf in the file.
    """

    path: str
    shape: tuple[int, ...]
    form: Form
    num_active: int
    size: int
    dense_bytes: int
    stored_bytes: int


class SizeReport(NamedTuple):
    """Sizes of a file; `print(report)` shows a table.

    Attributes:
      leaves: sizes of the leaves, in the order of the tree.
      header_bytes: bytes of names, shapes and metadata.
    """

    leaves: tuple[LeafSize, ...]
    header_bytes: int

    @property
    def dense_bytes(self) -> int:
        """Bytes of all leaves if stored dense, without a header."""
        return sum(leaf.dense_bytes for leaf in self.leaves)

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return sum(leaf.stored_bytes for leaf in self.leaves) + self.header_bytes

    @property
    def ratio(self) -> float:
        """file_bytes / dense_bytes."""
        return self.file_bytes / max(self.dense_bytes, 1)

    def __str__(self) -> str:
        """A table with a line for each sparse leaf, one for all dense leaves, and the total."""
        others = [leaf for leaf in self.leaves if leaf.form == "dense"]
        cells = [("leaf", "stored as", "weights", "active", "dense bytes", "bytes", "ratio")]
        cells += [_cells(x.path, x.form, x) for x in self.leaves if x.form != "dense"]
        if others:
            cells.append(_cells(f"{len(others)} dense leaves", "dense", _total(others)))
        cells.append(("header", "", "", "", "", f"{self.header_bytes:,}", ""))
        total = _total(self.leaves)
        cells.append(_cells("file", "", total._replace(stored_bytes=self.file_bytes)))
        return "\n".join(text_table(cells, align="<<"))


def _total(leaves: Sequence[LeafSize]) -> LeafSize:
    return LeafSize(
        path="",
        shape=(),
        form="dense",
        num_active=sum(leaf.num_active for leaf in leaves),
        size=sum(leaf.size for leaf in leaves),
        dense_bytes=sum(leaf.dense_bytes for leaf in leaves),
        stored_bytes=sum(leaf.stored_bytes for leaf in leaves),
    )


def _cells(name: str, form: str, leaf: LeafSize) -> tuple[str, ...]:
    numbers = (leaf.size, leaf.num_active, leaf.dense_bytes, leaf.stored_bytes)
    ratio = f"{leaf.stored_bytes / max(leaf.dense_bytes, 1):.4f}"
    return (name, form, *(f"{n:,}" for n in numbers), ratio)
