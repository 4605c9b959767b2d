"""A leaf as tensors: each form by eye, and tensors that do not fit together are refused."""

import numpy as np
import pytest

from jaxsparse.csr import to_csr
from jaxsparse.export.description import SparseLeaf
from jaxsparse.export.tensors import assembled, compressed

WEIGHTS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
MASK = np.array([[1, 0], [0, 0], [1, 1]], bool)
BITS = SparseLeaf("bits", (3, 2), None)


def test_forms_by_eye():
    assert compressed(WEIGHTS, np.ones((3, 2), bool), None) == ("dense", {"": WEIGHTS})
    form, parts = compressed(WEIGHTS, MASK, to_csr(WEIGHTS, MASK))
    assert form == "bits"
    # A row of Csr is an output: column 0 holds 1 and 5, column 1 holds 6.
    assert parts[".values"].tolist() == [1, 5, 6]
    assert np.unpackbits(parts[".bits"]).tolist() == [1, 0, 1, 0, 0, 1, 0, 0]
    one = np.zeros((3, 200), bool)
    one[1, 7] = True
    form, parts = compressed(np.ones((3, 200), np.float32), one, to_csr(np.ones((3, 200)), one))
    assert form == "bits" and parts[".bits"].nbytes == 75  # 200 rows have 201 ends
    form, parts = compressed(np.ones((200, 3)), one.T, to_csr(np.ones((200, 3)), one.T))
    assert form == "csr" and parts[".indptr"].tolist() == [0, 0, 1, 1]


def test_a_leaf_comes_back():
    _, parts = compressed(WEIGHTS, MASK, to_csr(WEIGHTS, MASK))
    tensors = {f"a{suffix}": part for suffix, part in parts.items()} | {"b": WEIGHTS}
    leaves = assembled(tensors, {"a": BITS})
    np.testing.assert_array_equal(leaves["a"][0], np.where(MASK, WEIGHTS, 0))
    np.testing.assert_array_equal(leaves["a"][1], MASK)
    np.testing.assert_array_equal(leaves["b"][0], WEIGHTS)
    assert leaves["b"][1].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.bits": None}, "^tensor a.bits is missing$"),
        ({"a.bits": np.zeros(2, np.uint8)}, r"^a: bits uint8\(2,\) do not fit 6 weights$"),
        ({"a.bits": np.zeros(1, np.int8)}, r"^a: bits int8\(1,\) do not fit 6 weights$"),
        ({"a.values": np.zeros(2)}, r"^a: 3 bits are set, but values have shape \(2,\)$"),
        ({"a": WEIGHTS}, "^a is there dense and sparse$"),
    ],
)
def test_tensors_that_do_not_fit_together(changes, message):
    tensors = {"a.values": np.ones(3), "a.bits": np.packbits([1, 0, 1, 0, 0, 1])} | changes
    with pytest.raises(ValueError, match=message):
        assembled({name: x for name, x in tensors.items() if x is not None}, {"a": BITS})
