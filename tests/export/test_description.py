"""A file's description of itself: reading it back, versions, checksums, and damage."""

import json

import numpy as np
import pytest

from jaxsparse.export.description import KEY, SparseLeaf, describe, described

TENSORS = {"a.values": np.arange(3.0), "a.bits": np.uint8([224]), "b": np.ones((2, 2))}
SPARSE = {"a": SparseLeaf("bits", (2, 4), None)}
COLUMNS = {"a": SparseLeaf("csr", (2, 2, 2), (0,))}
SAID = describe(TENSORS, SPARSE)


def changed(**changes):
    return {KEY: json.dumps(json.loads(SAID) | changes)}


def test_it_reads_back_what_it_wrote():
    for sparse, version in ((SPARSE, 1), (COLUMNS, 2), ({}, 1)):
        said = describe(TENSORS, sparse)
        assert described({KEY: said}, TENSORS) == sparse
        entry = json.loads(said)
        assert entry["version"] == version
        assert len(entry["crc32"]) == 8 * (1 + len(TENSORS))  # one for the entry itself
    assert described({"by": "another program"}, TENSORS) == {}


def test_checksums_of_before_there_were_any():
    entry = json.loads(SAID)
    del entry["crc32"]
    assert described({KEY: json.dumps(entry)}, {"a.values": np.zeros(3)}) == SPARSE


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"jaxspbrse": SAID}, "its metadata 'jaxsparse' is damaged: it is called 'jaxspbrse'"),
        ({KEY: SAID[:-1]}, "its metadata 'jaxsparse' cannot be understood"),
        ({KEY: "[]"}, "cannot be understood"),
        (changed(sparse={"a": {"form": "coo", "shape": [2, 4]}}), "cannot be understood"),
        (changed(sparse={"a": {"form": "bits", "shape": [2, -4]}}), "cannot be understood"),
        (changed(version=3), "written in format 3; this jaxsparse reads up to 2"),
        (changed(crc32="00"), "has checksums of other tensors than the file"),
        (changed(crc32="0" * 32), "metadata 'jaxsparse' is damaged: it has another checksum"),
    ],
)
def test_an_entry_that_is_damaged(metadata, message):
    with pytest.raises(ValueError, match=message):
        described(metadata, TENSORS)


@pytest.mark.parametrize(
    "tensor",
    [np.zeros((2, 2)), np.ones((2, 2), np.int64), np.ones((4, 1))],
    ids=["values", "dtype", "shape"],
)
def test_a_tensor_that_is_damaged_is_named(tensor):
    with pytest.raises(ValueError, match="^b is damaged: it has another checksum than"):
        described({KEY: SAID}, TENSORS | {"b": tensor})
