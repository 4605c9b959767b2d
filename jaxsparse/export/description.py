"""A file's description of itself: one entry of its metadata, with sparse leaves and checksums.

The entry is JSON: {"version": 1, "sparse": {path: {"form", "shape", "outputs"}}, "crc32": "..."}. A
leaf has "outputs" if the rows of its `Csr` are not the last axis; the file then has version 2 of
the format. "crc32" has eight hexadecimal digits for "sparse", then eight for each tensor in the
order of names, over its name, dtype, shape and bytes. Files older than the checksums lack "crc32",
and files of other programs lack the entry; both are read unchecked.
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsparse.export.sizes import Form

KEY = "jaxsparse"
_VERSION = 2
# The text of an entry of ours; damage may have changed its key.
_OURS = re.compile(r'\{"version":\d+,"sparse":\{.*\},"crc32":"[0-9a-f]*"\}')


class SparseLeaf(NamedTuple):
    """The description of a sparse leaf in the metadata.

    Attributes:
      form: form of its tensors, "csr" or "bits".
      shape: shape of the leaf.
      outputs: axes of the rows, as in `Csr`; None for the last axis.
    """

    form: Form
    shape: tuple[int, ...]
    outputs: tuple[int, ...] | None


def describe(tensors: Mapping[str, np.ndarray], sparse: Mapping[str, SparseLeaf]) -> str:
    """Returns the entry of the metadata as text.

    Args:
      tensors: all tensors of the file, by name.
      sparse: the sparse leaves, by path.
    """
    said = {path: _said(leaf) for path, leaf in sparse.items()}
    entry = {
        "version": 2 if any("outputs" in leaf for leaf in said.values()) else 1,
        "sparse": said,
        "crc32": "".join(_checksums(tensors, sparse).values()),
    }
    return json.dumps(entry, separators=(",", ":"))


def described(
    metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> dict[str, SparseLeaf]:
    """Returns the sparse leaves by path, after a check of the checksums.

    Args:
      metadata: metadata of the file.
      tensors: all tensors of the file, by name.

    Raises:
      ValueError: the entry is damaged or has a later version, or a checksum differs.
    """
    for key, text in metadata.items():
        if key != KEY and _OURS.fullmatch(text):
            raise ValueError(f"its metadata {KEY!r} is damaged: it is called {key!r}")
    if KEY not in metadata:
        return {}
    try:
        entry = json.loads(metadata[KEY])
        version = int(entry["version"])
        sparse = {
            path: SparseLeaf(
                leaf["form"],
                tuple(map(int, leaf["shape"])),
                tuple(map(int, leaf["outputs"])) if "outputs" in leaf else None,
            )
            for path, leaf in entry["sparse"].items()
        }
        understood = all(
            leaf.form in ("csr", "bits") and min(leaf.shape, default=0) >= 0
            for leaf in sparse.values()
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        entry, version, sparse, understood = {}, _VERSION, {}, False
    if version > _VERSION:
        raise ValueError(f"written in format {version}; this jaxsparse reads up to {_VERSION}")
    if not understood:
        raise ValueError(f"its metadata {KEY!r} cannot be understood")
    if "crc32" in entry:
        _check(entry["crc32"], _checksums(tensors, sparse))
    return sparse


def _said(leaf: SparseLeaf) -> dict[str, Any]:
    said = {"form": leaf.form, "shape": leaf.shape}
    return said if leaf.outputs is None else said | {"outputs": leaf.outputs}


def _check(written: Any, checksums: Mapping[str, str]) -> None:
    if not isinstance(written, str) or len(written) != 8 * len(checksums):
        raise ValueError(f"its metadata {KEY!r} has checksums of other tensors than the file")
    for at, (name, checksum) in enumerate(checksums.items()):
        if written[8 * at : 8 * at + 8] != checksum:
            raise ValueError(f"{name} is damaged: it has another checksum than when it was written")


def _checksums(
    tensors: Mapping[str, np.ndarray], sparse: Mapping[str, SparseLeaf]
) -> dict[str, str]:
    """Eight hexadecimal digits for the metadata, then for each tensor in the order of names."""
    said = json.dumps({path: _said(leaf) for path, leaf in sparse.items()}, sort_keys=True)
    found = {f"metadata {KEY!r}": zlib.crc32(said.encode())}
    for name, tensor in sorted(tensors.items()):
        head = json.dumps([name, tensor.dtype.name, tensor.shape])
        found[name] = zlib.crc32(tensor.reshape(-1).view(np.uint8).data, zlib.crc32(head.encode()))
    return {name: f"{number:08x}" for name, number in found.items()}
