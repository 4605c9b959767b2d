"""Models as safetensors files: dense, or with active weights only.

Tensors are named by the path of their leaf. A leaf whose mask is all True is one tensor,
"Dense_0/bias". For any other leaf only the active weights are written, as "Dense_0/kernel.values"
in the order of `Csr`. Their positions are written in the smaller of two forms:

    csr     "Dense_0/kernel.indices" and ".indptr", as in `Csr`
    bits    "Dense_0/kernel.bits", one bit per weight in the order of `Csr`, packed by np.packbits

With 16-bit indices, csr is smaller below a density of about 1/16; with 8-bit indices below 1/8. The
entry "jaxsparse" of the file's metadata holds the form and shape of every such leaf, its output
axes if they are not the last one, and checksums of everything that `load_safetensors` returns (see
description.py).
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.axes import AxesByPath, axes_of
from jaxsparse.csr import to_csr
from jaxsparse.export.description import KEY, SparseLeaf, describe, described
from jaxsparse.export.sizes import LeafSize, SizeReport
from jaxsparse.export.tensors import assembled, compressed
from jaxsparse.flat_state import nested, renamed
from jaxsparse.masks import check_masks, dense_masks
from jaxsparse.paths import check_like, leaves_by_path
from jaxsparse.processes import decided, is_shared, whole, whole_on_first
from jaxsparse.types import KernelAxes, PyTree
from jaxsparse.whole_files import written_whole

# The format's names of the dtypes of NumPy, including those that JAX adds.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "C64": "complex64",
    "BOOL": "bool",
}


def save_safetensors(
    path: str | os.PathLike,
    params: PyTree,
    masks: PyTree | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    axes: AxesByPath | None = None,
) -> SizeReport:
    """Writes a model to a file and returns its sizes; print the result for a table.

    Without masks every leaf is written dense, for any program that reads safetensors. (Within this
    library params are stored masked, so inactive weights are 0.) With masks only active weights are
    written, and `load_safetensors` returns both trees bit for bit, including active weights that
    are 0. Values off the mask are not written.

    The file is written completely or not at all, and replaces an existing file, as in `safetensors`
    itself. The same trees give the same bytes, except that your own metadata may come in any order.

    Sharded leaves come to the host one by one, and stay there only by their active weights. If
    several processes share leaves, all of them call this function: process 0 writes the file, and
    all return its sizes, or raise its error. The leaf that is next is copied to every device.

    Args:
      path: the file; its folder must exist.
      params: any pytree of arrays. bfloat16 and 8-bit floats are written as such, scalars with
        shape ().
      masks: bool, the structure and shapes of params; None writes all leaves dense.
      metadata: strings to keep in the file's header, under any name but "jaxsparse".
      axes: the output axes of leaves, by path, as in `to_csr_tree`. They change the order of values
        in the file, but not what is read back.

    Raises:
      ImportError: safetensors is not installed.
      ValueError: trees differ, the format lacks a dtype, two tensors have one name, or metadata are
        not strings.

    >>> import tempfile
    >>> params = {"kernel": jnp.zeros((64, 64)).at[3].set(1.0), "bias": jnp.zeros(64)}
    >>> masks = {"kernel": params["kernel"] != 0, "bias": jnp.ones(64, bool)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(save_safetensors(f"{folder}/model.safetensors", params, masks))
    leaf            stored as  weights  active  dense bytes  bytes   ratio
    kernel          csr          4,096      64       16,384    385  0.0235
    1 dense leaves  dense           64      64          256    256  1.0000
    header                                                     440
    file                         4,160     128       16,640  1,081  0.0650
    """
    masks = dense_masks(params) if masks is None else masks
    masks = check_masks(masks, params)
    header = _checked_metadata(metadata or {})
    shared = is_shared((params, masks))
    bring = whole_on_first if shared else whole
    by_path, stored = leaves_by_path(masks), []
    for name, leaf in leaves_by_path(params).items():
        _check_dtype(name, leaf)
        found = axes_of(name, np.shape(leaf), axes or {})
        weights, mask = bring(leaf), bring(by_path[name])
        if weights is not None and mask is not None:
            stored.append(_stored(name, weights, mask, found))
    write = functools.partial(_write, Path(path), stored, header)
    return _report(*decided(write)) if shared else write()


class _Stored(NamedTuple):
    """A leaf as it will be in the file: its sizes, tensors by suffix, and rows if it is sparse."""

    size: LeafSize
    parts: dict[str, np.ndarray]
    outputs: tuple[int, ...] | None


def _stored(name: str, weights: np.ndarray, mask: np.ndarray, axes: KernelAxes) -> _Stored:
    # In C order: safetensors writes the memory of an array as it is and ignores its strides.
    weights = np.asarray(weights, order="C")
    csr = None if mask.all() else to_csr(weights, mask, axes)
    form, parts = compressed(weights, mask, csr)
    num_bytes = sum(part.nbytes for part in parts.values())
    counts = (int(np.count_nonzero(mask)), mask.size, weights.nbytes, num_bytes)
    return _Stored(LeafSize(name, mask.shape, form, *counts), parts, csr and csr.outputs)


def _write(path: Path, stored: Sequence[_Stored], header: Mapping[str, str]) -> SizeReport:
    """Writes the file, and returns its sizes."""
    tensors: dict[str, np.ndarray] = {}
    sparse: dict[str, SparseLeaf] = {}
    for size, parts, outputs in stored:
        for suffix, part in parts.items():
            name = size.path + suffix
            if name in tensors or name == "__metadata__":  # of the header
                raise ValueError(f"the name {name} is taken in the file; rename the leaf")
            tensors[name] = part
        if size.form != "dense":
            sparse[size.path] = SparseLeaf(size.form, size.shape, outputs)
    data = _safetensors().numpy.save(tensors, {**header, KEY: describe(tensors, sparse)})
    _replace(path, data)
    sizes = tuple(leaf.size for leaf in stored)
    return SizeReport(sizes, len(data) - sum(size.stored_bytes for size in sizes))


def _report(leaves: Sequence[Any], header_bytes: int) -> SizeReport:
    """A report that another process may have sent, without its types."""
    sizes = (LeafSize(path, tuple(shape), *rest) for path, shape, *rest in leaves)
    return SizeReport(tuple(sizes), header_bytes)


def load_safetensors(
    path: str | os.PathLike, *, like: PyTree | None = None
) -> tuple[PyTree, PyTree]:
    """Reads (params, masks) from a file of `save_safetensors`, or dense tensors of any program.

    Args:
      path: the file.
      like: a tree of params, or of `jax.ShapeDtypeStruct`, whose containers the result will have.
        Its paths and shapes must be those of the file. None gives nested dicts, as in linen:
        "Dense_0/kernel" becomes {"Dense_0": {"kernel": ...}}. A single array without a name is
        returned as itself.

    Returns:
      params and masks of NumPy arrays, exact in every dtype; `jax.device_put` places them. A leaf
      that was written dense has a mask that is all True (use `masks_from_params` for a sparse model
      from elsewhere).

    Raises:
      ImportError: safetensors is not installed.
      ValueError: the file is damaged, is no safetensors file, or does not fit `like`; names the
        file, the leaf and what is wrong. Files of `save_safetensors` have checksums. In files of
        other programs, and of versions before the checksums, a wrong value is not noticed.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        leaves = assembled(*_parsed(data))
        weights = {name: weights for name, (weights, _) in leaves.items()}
        masks = {name: mask for name, (_, mask) in leaves.items()}
        if like is None:
            return nested(weights), nested(masks)
        return _as_in(like, weights), _as_in(like, masks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parsed(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, SparseLeaf]]:
    """All tensors by name, and the descriptions of the sparse leaves."""
    package = _safetensors()
    try:
        entries = package.deserialize(data)
    except package.SafetensorError as error:
        raise ValueError(f"not a whole safetensors file ({error})") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} has dtype {entry['dtype']}, which NumPy lacks")
        flat = np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]]))
        tensors[name] = flat.reshape(entry["shape"])
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, described(header.get("__metadata__") or {}, tensors)


def _as_in(like: PyTree, leaves: Mapping[str, np.ndarray]) -> PyTree:
    wanted = leaves_by_path(like)
    ours = renamed(leaves, wanted)
    check_like(ours, wanted, name="the file", like="like")
    return jax.tree.unflatten(jax.tree.structure(like), [ours[path] for path in wanted])


def _check_dtype(path: str, leaf: Any) -> None:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"params at {path} is a random key; write jax.random.key_data of it")
    dtype = leaf.dtype if isinstance(leaf, jax.Array) else np.asarray(leaf).dtype
    if dtype.name not in _DTYPES.values():
        raise ValueError(
            f"params at {path} has dtype {dtype.name}; a safetensors file can hold "
            + ", ".join(_DTYPES.values())
        )


def _checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for name, text in metadata.items():
        if name == KEY or not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f"metadata {name!r}: {text!r} must be strings, under a name but {KEY}")
    return metadata


def _replace(path: Path, data: bytes) -> None:
    with written_whole(path) as beside:
        beside.write_bytes(data)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "safetensors files need the package safetensors: pip install 'jaxsparse[export]'"
        ) from None
    return safetensors
