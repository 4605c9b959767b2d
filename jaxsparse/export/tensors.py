"""A leaf as the tensors of a file, and back: dense, or its active weights and which they are."""

from collections.abc import Mapping

import numpy as np

from jaxsparse.csr import Csr, from_csr, from_matrix, matrix_shape, to_csr, to_matrix
from jaxsparse.export.sizes import Form

_PARTS: dict[Form, tuple[str, ...]] = {
    "dense": ("",),
    "csr": (".values", ".indices", ".indptr"),
    "bits": (".values", ".bits"),
}


def compressed(weights: np.ndarray, mask: np.ndarray) -> tuple[Form, dict[str, np.ndarray]]:
    """The smallest form of a leaf, and its tensors by suffix."""
    if mask.all():
        return "dense", {"": weights}
    csr, bits = to_csr(weights, mask), np.packbits(to_matrix(mask))
    if csr.indices.nbytes + csr.indptr.nbytes <= bits.nbytes:
        return "csr", {".values": csr.values, ".indices": csr.indices, ".indptr": csr.indptr}
    return "bits", {".values": csr.values, ".bits": bits}


def assembled(
    tensors: Mapping[str, np.ndarray], sparse: Mapping[str, tuple[Form, tuple[int, ...]]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(weights, mask) by path, of all tensors of a file and the forms of its sparse leaves."""
    leaves, tensors = {}, dict(tensors)
    for name, (form, shape) in sparse.items():
        missing = [name + part for part in _PARTS[form] if name + part not in tensors]
        if missing:
            raise ValueError(f"tensor {missing[0]} is missing")
        parts = [tensors.pop(name + part) for part in _PARTS[form]]
        try:
            leaves[name] = _restored(form, shape, parts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name, weights in tensors.items():
        if name in leaves:
            raise ValueError(f"{name} is there dense and sparse")
        leaves[name] = weights, np.ones(weights.shape, bool)
    return leaves


def _restored(
    form: Form, shape: tuple[int, ...], parts: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    if form == "csr":
        return from_csr(Csr(*parts, shape=shape))
    values, bits = parts
    rows, columns = matrix_shape(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-rows * columns // 8),):
        raise ValueError(f"bits {bits.dtype}{bits.shape} do not fit {rows * columns} weights")
    active = np.unpackbits(bits, count=rows * columns).astype(bool)
    if values.shape != (active.sum(),):
        raise ValueError(f"{active.sum()} bits are set, but values have shape {values.shape}")
    weights = np.zeros(active.shape, values.dtype)
    weights[active] = values
    return from_matrix(weights, shape), from_matrix(active, shape)
