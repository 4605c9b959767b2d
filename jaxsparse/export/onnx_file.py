"""A graph as the bytes of an ONNX model, with dense or sparse constants."""

from typing import Any

import numpy as np

from jaxsparse.export.onnx_graph import Graph, Size
from jaxsparse.paths import is_vector

# Of 2022: all that is needed is in it, and runtimes of the years since read it.
OPSET, IR_VERSION = 18, 8
_INDEX_BYTES = 8  # the standard has indices of 64 bits
_LIMIT = 2**31 - 1  # of a protobuf message


def serialized(graph: Graph, *, sparse: bool, name: str) -> bytes:
    """Returns the model as the bytes of a file.

    Args:
      graph: the graph, finished.
      sparse: whether weights are stored as active entries and their indices if that is smaller;
        vectors are not.
      name: of the graph.

    Raises:
      ImportError: the package onnx is not installed.
      ValueError: the file would have 2 GiB or more, or the package finds a mistake in the model.
    """
    onnx = packaged()
    num_bytes = sum(x.nbytes for x in graph.constants.values())
    if num_bytes > _LIMIT:
        raise ValueError(f"the constants have {num_bytes:,} bytes; an ONNX file holds {_LIMIT:,}")
    rare = {key for key, x in graph.constants.items() if sparse and _is_smaller_sparse(x)}
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [_node(onnx, node) for node in graph.nodes],
            name,
            [_info(onnx, key, x.shape, x.dtype) for key, x in graph.inputs],
            [_info(onnx, key, x.shape, x.dtype) for key, x in graph.outputs],
            [
                onnx.numpy_helper.from_array(x, key)
                for key, x in graph.constants.items()
                if key not in rare
            ],
            sparse_initializer=[_sparse(onnx, key, graph.constants[key]) for key in sorted(rare)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxsparse",
    )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"not a valid ONNX model: {str(error).splitlines()[0]}") from error
    return model.SerializeToString(deterministic=True)


def packaged() -> Any:
    """Returns the package onnx.

    Raises:
      ImportError: it is not installed; says how to install it.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise ImportError(
            "ONNX files need the package onnx: pip install 'jaxsparse[onnx]'"
        ) from None
    return onnx


def _node(onnx: Any, node: Any) -> Any:
    def attribute(value: Any) -> Any:
        return _type(onnx, value) if isinstance(value, np.dtype) else value

    attributes = {name: attribute(value) for name, value in node.attributes.items()}
    return onnx.helper.make_node(
        node.op, node.inputs, node.outputs, name=node.outputs[0], **attributes
    )


def _info(onnx: Any, name: str, shape: tuple[Size, ...], dtype: np.dtype) -> Any:
    sizes = [size if isinstance(size, int) else str(size) for size in shape]
    return onnx.helper.make_tensor_value_info(name, _type(onnx, dtype), sizes)


def _type(onnx: Any, dtype: np.dtype) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(dtype)


def _is_smaller_sparse(array: np.ndarray) -> bool:
    num_bytes = int(np.count_nonzero(array)) * (array.itemsize + _INDEX_BYTES)
    return not is_vector(array.shape) and num_bytes < array.nbytes


def _sparse(onnx: Any, name: str, array: np.ndarray) -> Any:
    indices = np.flatnonzero(array).astype(np.int64)
    values = onnx.numpy_helper.from_array(array.ravel()[indices], name)
    places = onnx.numpy_helper.from_array(indices, f"{name}/indices")
    return onnx.helper.make_sparse_tensor(values, places, array.shape)
