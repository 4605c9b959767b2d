"""The bytes of a network, which the engine reads: from memory, or from a file without Python.

Numbers are little-endian, 4 bytes each; arrays of smaller ones are filled up to a multiple of 4. A
tap is 2 bytes if a layer has at most 65,536 pairs of a source and a shift, and its weight is 4, 2
or 1. csrc/engine/parser.h reads the same in the same order.
"""

import struct
import zlib
from typing import Any

import numpy as np

from jaxsparse.engine.layout import lay_out
from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import (
    FUNCTIONS,
    Activation,
    Array,
    Constant,
    Copy,
    Largest,
    Linear,
    Operation,
    Pool,
    Product,
    Reflow,
    Select,
    Sum,
)

MAGIC = b"JSENGINE"
VERSION = 2


def to_bytes(net: Network, weight_bits: int = 32) -> bytes:
    """Returns the file of a network.

    Args:
      net: simplified.
      weight_bits: 32; 16 for bfloat16; or 8 for whole numbers from -127 to 127 and a scale for each
        plane, but for weights that are much larger than the others of their plane.

    Raises:
      ValueError: a plane, or all of them, take more memory than the engine has for an image.
    """
    number, layout, to = _numbered(net), lay_out(net), _Writer()
    to.put(len(layout.families))
    for family in layout.families:
        to.put(*family)
    to.put(len(net.sizes))
    for size, family in zip(net.sizes, layout.family_of, strict=True):
        to.put(family, *size)
    planes = np.flatnonzero(number >= 0)
    to.put(layout.arena, len(planes))
    to.array(net.size_of[planes])
    to.array(layout.place[planes])
    constants = [op for op in net.operations if isinstance(op, Constant)]
    to.put(len(constants))
    for constant in constants:
        to.put(len(constant.outs))
        to.array(number[constant.outs])
        to.array(constant.pixels, "<f4")
    for arrays in (net.inputs, net.outputs):
        to.put(len(arrays))
        for array in arrays:
            _put_array(to, array, number)
    others = [op for op in net.operations if not isinstance(op, Constant)]
    to.put(len(others))
    for operation in others:
        _put_operation(to, operation, net, layout.place, number, weight_bits)
    body = to.bytes()
    return MAGIC + struct.pack("<III", VERSION, zlib.crc32(body), len(body)) + body


def _numbered(net: Network) -> np.ndarray:
    """By plane: its number in the file; -1 for planes that are gone."""
    used = np.zeros(len(net.size_of), bool)
    for array in (*net.inputs, *net.outputs):
        used[array.planes] = True
    for operation in net.operations:
        used[operation.outs] = True
    return np.where(used, np.cumsum(used) - 1, -1).astype(np.int32)


class _Writer:
    """Collects bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def put(self, *numbers: int | float | np.floating) -> None:
        for x in numbers:
            is_real = isinstance(x, float | np.floating)
            self.parts.append(struct.pack("<f" if is_real else "<i", x))

    def array(self, array: Any, dtype: str = "<i4") -> None:
        """Writes an array as a dtype."""
        data = np.ascontiguousarray(array, dtype).tobytes()
        self.parts.append(data + b"\0" * (-len(data) % 4))

    def bytes(self) -> bytes:
        return b"".join(self.parts)


def _put_array(to: _Writer, array: Array, number: np.ndarray) -> None:
    to.put(len(array.shape))
    to.array(array.shape)
    to.put(array.row, array.column, len(array.planes))
    to.array(number[array.planes])
    to.array(array.first)


def _put_operation(
    to: _Writer,
    operation: Operation,
    net: Network,
    place: np.ndarray,
    number: np.ndarray,
    weight_bits: int,
) -> None:
    names = (Linear, Copy, Pool, Sum, Product, Largest, Select, Reflow)
    to.put(names.index(type(operation)))
    planes = lambda *arrays: [to.array(number[array]) for array in arrays]
    match operation:
        case Linear():
            _put_linear(to, operation, net, place, number, weight_bits)
        case Copy():
            to.put(*operation.stride, len(operation.outs))
            planes(operation.outs, operation.sources)
            to.array(operation.first_y)
            to.array(operation.first_x)
        case Pool():
            to.put(*operation.window, *operation.stride, *operation.first, len(operation.outs))
            planes(operation.outs, operation.sources)
        case Sum() | Reflow():
            to.put(len(operation.outs))
            planes(operation.outs, operation.sources)
        case Product():
            to.put(len(operation.outs))
            planes(operation.outs, operation.left, operation.right)
        case Largest():
            to.put(len(operation.outs), len(operation.sources))
            planes(operation.outs)
            to.array(np.diff(operation.start))
            planes(operation.sources)
        case Select():
            to.put(int(operation.or_zero), len(operation.outs))
            planes(operation.outs, operation.condition, operation.above, operation.otherwise)


def _put_linear(
    to: _Writer,
    linear: Linear,
    net: Network,
    place: np.ndarray,
    number: np.ndarray,
    weight_bits: int,
) -> None:
    sources = np.unique(linear.sources)
    sources = sources[np.argsort(place[sources], kind="stable")]
    where = np.zeros(len(net.size_of), np.int64)
    where[sources] = np.arange(len(sources))
    shifts, shift = np.unique(np.stack([linear.dy, linear.dx]), axis=1, return_inverse=True)
    num_shifts = shifts.shape[1]
    taps = where[linear.sources] * num_shifts + shift.ravel()
    order = np.lexsort((taps, linear.out_of_tap()))
    taps, weights = taps[order], linear.weights[order]
    to.put(int(net.size_of[linear.outs[0]]))
    _put_activation(to, linear.activation)
    to.put(num_shifts, len(sources), len(linear.outs), len(taps), weight_bits)
    to.array(shifts.T)
    to.array(number[sources])
    to.array(number[linear.outs])
    to.array(linear.bias, "<f4")
    to.array(linear.counts())
    to.array(taps, "<u2" if len(sources) * num_shifts <= 1 << 16 else "<i4")
    _put_weights(to, weights, linear.counts(), weight_bits)


def _put_activation(to: _Writer, activation: Activation) -> None:
    to.put(FUNCTIONS.index(activation.function), float(activation.low), float(activation.high))


def _put_weights(to: _Writer, weights: np.ndarray, counts: np.ndarray, bits: int) -> None:
    if bits == 32:
        to.array(weights, "<f4")
    elif bits == 16:
        whole = weights.astype("<f4").view("<u4")
        rounded = whole + 0x7FFF + (whole >> 16 & 1)  # to the nearest, ties to even
        to.array(rounded >> 16, "<u2")
    else:
        out = np.repeat(np.arange(len(counts)), counts)
        large = np.flatnonzero(_stand_out(weights, out, counts))
        small = weights.copy()
        small[large] = 0.0
        largest = np.zeros(len(counts))
        np.maximum.at(largest, out, np.abs(small))
        scales = np.where(largest > 0, largest / 127, 1.0)
        to.array(scales, "<f4")
        to.array(np.rint(small / scales[out]), "<i1")
        to.put(len(large))
        to.array(large)
        to.array(weights[large], "<f4")


def _stand_out(weights: np.ndarray, out: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether a weight is more than 8 times the mean of the others of its plane, in size.

    So is that of a shortcut which became part of a convolution. A scale for both would be too
    coarse for the convolution.
    """
    size = np.abs(weights)
    others = np.bincount(out, size, len(counts))[out] - size
    return size * (counts[out] - 1) > 8 * others
