"""A leaf as the tensors of a file, and back: dense, or active weights and their positions."""

from collections.abc import Mapping

import numpy as np

from jaxsparse.csr import Csr, check_outputs, from_csr, from_matrix, matrix_shape, to_matrix
from jaxsparse.export.description import SparseLeaf
from jaxsparse.export.sizes import Form

_PARTS: dict[Form, tuple[str, ...]] = {
    "dense": ("",),
    "csr": (".values", ".indices", ".indptr"),
    "bits": (".values", ".bits"),
}


def compressed(
    weights: np.ndarray, mask: np.ndarray, csr: Csr | None
) -> tuple[Form, dict[str, np.ndarray]]:
    """Returns the smaller sparse form of a leaf, and its tensors by the suffix of their name.

    Args:
      weights: the leaf.
      mask: bool, its mask.
      csr: its active weights; None stores it dense.
    """
    if csr is None:
        return "dense", {"": weights}
    bits = np.packbits(to_matrix(mask, csr.outputs))
    if csr.indices.nbytes + csr.indptr.nbytes <= bits.nbytes:
        return "csr", {".values": csr.values, ".indices": csr.indices, ".indptr": csr.indptr}
    return "bits", {".values": csr.values, ".bits": bits}


def assembled(
    tensors: Mapping[str, np.ndarray], sparse: Mapping[str, SparseLeaf]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (weights, mask) by path.

    Args:
      tensors: all tensors of a file, by name.
      sparse: descriptions of its sparse leaves, by path.

    Raises:
      ValueError: tensors are missing or do not fit each other; names the leaf.
    """
    leaves, tensors = {}, dict(tensors)
    for name, leaf in sparse.items():
        missing = [name + part for part in _PARTS[leaf.form] if name + part not in tensors]
        if missing:
            raise ValueError(f"tensor {missing[0]} is missing")
        parts = [tensors.pop(name + part) for part in _PARTS[leaf.form]]
        try:
            leaves[name] = _restored(leaf, parts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name, weights in tensors.items():
        if name in leaves:
            raise ValueError(f"{name} is there dense and sparse")
        leaves[name] = weights, np.ones(weights.shape, bool)
    return leaves


def _restored(leaf: SparseLeaf, parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    shape, outputs = leaf.shape, leaf.outputs
    if leaf.form == "csr":
        return from_csr(Csr(*parts, shape=shape, outputs=outputs))
    values, bits = parts
    check_outputs(outputs, shape)
    rows, columns = matrix_shape(shape, outputs)
    if bits.dtype != np.uint8 or bits.shape != (-(-rows * columns // 8),):
        raise ValueError(f"bits {bits.dtype}{bits.shape} do not fit {rows * columns} weights")
    active = np.unpackbits(bits, count=rows * columns).astype(bool)
    if values.shape != (active.sum(),):
        raise ValueError(f"{active.sum()} bits are set, but values have shape {values.shape}")
    weights = np.zeros(active.shape, values.dtype)
    weights[active] = values
    return from_matrix(weights, shape, outputs), from_matrix(active, shape, outputs)
