"""The direct sparse convolution of the CPU kernels as Pallas kernels for GPUs, by Triton.

Images are [channel, y, x, image], so that an active weight reads one contiguous vector for
neighbouring images. A program computes a block of outputs (some pixels of some images) for a few
output channels in turn. For each active weight of a channel it loads the block of inputs that the
weight reads, and adds it, times the weight, to a sum in registers. Nothing is padded: reads outside
of the images are masked. Programs for the same block and different output channels run at about the
same time, so that their inputs stay in the L2 cache.

Every multiply-add needs one load, mostly from L2, and this is the limit; tensor cores cannot help.
The backward pass is two more kernels, not one fused kernel:

images  the same kernel on the transposed list, by input channel
values  holds a block of the outputs' gradients and takes, for each weight of their channel, its
        product with the block that the weight sees: one number for each block and weight, which a
        second pass sums in a fixed order
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from benchmarks.gpu_layers import Layer, Lists


class Block(NamedTuple):
    """The work of one program; all numbers are powers of two.

    Attributes:
      pixels: number of output pixels.
      images: number of images, neighbours in memory.
      channels: output channels that are computed in turn. If it does not divide those of the layer,
        the greatest common divisor is used.
      unroll: number of weights whose loads may be in flight together.
      warps: number of warps, of 32 threads each.
    """

    pixels: int
    images: int
    channels: int
    unroll: int
    warps: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def convolve(
    layer: Layer, block: Block, interpret: bool, images: jax.Array, values: jax.Array, lists: Lists
) -> jax.Array:
    """Convolves images with a kernel given by its active weights; differentiable in both.

    Args:
      layer: the convolution.
      block: of the forward pass and the gradient of the images.
      interpret: runs without a GPU, slowly.
      images: float32 or bfloat16 [channel, y, x, image].
      values: float32[capacity], in the order of `Lists.codes`.
      lists: of the active weights.

    Returns:
      The outputs in the layout and dtype of the images; sums are float32.
    """
    return _convolve(layer, block, interpret, False, images, values, lists.starts, lists.codes)


def _forward(
    layer: Layer, block: Block, interpret: bool, images: jax.Array, values: jax.Array, lists: Lists
) -> tuple[jax.Array, Any]:
    return convolve(layer, block, interpret, images, values, lists), (images, values, lists)


def _backward(layer: Layer, block: Block, interpret: bool, kept: Any, grads: jax.Array) -> Any:
    images, values, lists = kept
    transposed = (values[lists.order], lists.back_starts, lists.back_codes)
    grad_images = _convolve(layer, block, interpret, True, grads, *transposed)
    # One warp, which sums without waiting for others. A thread loads 16 bytes at a time.
    summing = Block(4, 512 // images.dtype.itemsize, 1, 2, 1)
    return grad_images, _grad_values(layer, summing, interpret, images, grads, lists), None


convolve.defvjp(_forward, _backward)


class _Work(NamedTuple):
    """How the programs of a kernel share its outputs. The first index runs fastest.

    Attributes:
      block: of one program; its channels divide those of the outputs.
      channels: of the outputs.
      size: height and width of the outputs.
      batch: images.
    """

    block: Block
    channels: int
    size: int
    batch: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Groups of channels, blocks of images, blocks of pixels."""
        images = pl.cdiv(self.batch, self.block.images)
        pixels = pl.cdiv(self.size**2, self.block.pixels)
        return self.channels // self.block.channels, images, pixels

    def indices(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The channel group, images [1, images] and pixels [pixels, 1] of this program."""
        # One axis, decoded here: the others of CUDA's grid are short.
        groups, image_blocks, _ = self.grid
        program = pl.program_id(0)
        group, rest = lax.rem(program, groups), lax.div(program, groups)
        image, pixel = lax.rem(rest, image_blocks), lax.div(rest, image_blocks)
        images = image * self.block.images + jnp.arange(self.block.images, dtype=jnp.int32)
        pixels = pixel * self.block.pixels + jnp.arange(self.block.pixels, dtype=jnp.int32)
        return group, images[None, :], pixels[:, None]

    def inside(self, images: jax.Array, pixels: jax.Array) -> jax.Array | None:
        """Masks of the images and pixels that exist; None if all exist, which needs no mask."""
        masks = []
        if self.size**2 % self.block.pixels:
            masks.append(pixels < self.size**2)
        if self.batch % self.block.images:
            masks.append(images < self.batch)
        return _all(masks, (self.block.pixels, self.block.images))


def _work(block: Block, channels: int, size: int, batch: int) -> _Work:
    return _Work(block._replace(channels=math.gcd(block.channels, channels)), channels, size, batch)


def _convolve(  # noqa: PLR0913
    layer: Layer,
    block: Block,
    interpret: bool,
    transposed: bool,
    images: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    codes: jax.Array,
) -> jax.Array:
    """The convolution of images or, with the transposed list, of the outputs' gradients."""
    channels, size = (layer.inputs, layer.size) if transposed else (layer.outputs, layer.out_size)
    batch = images.shape[-1]
    work = _work(block, channels, size, batch)
    out = pl.pallas_call(
        functools.partial(_convolve_kernel, layer, work, transposed),
        grid=(math.prod(work.grid),),
        out_shape=jax.ShapeDtypeStruct((channels * size**2 * batch,), images.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=block.warps, num_stages=1),
        interpret=interpret,
    )(starts, codes, values, images.reshape(-1))
    return out.reshape(channels, size, size, batch)


def _convolve_kernel(layer: Layer, work: _Work, transposed: bool, *refs: Any) -> None:
    starts, codes, values, source, out = refs
    group, images, pixels = work.indices()
    inside = work.inside(images, pixels)
    read = _reader(layer, work, transposed, source, images, pixels, inside)

    # A loop without a carry has None as its carry: the lowering to Triton takes no constants.
    def make_channel(nth: Any, _: Any) -> None:
        channel = group * work.block.channels + nth

        def add(entry: jax.Array, is_one: jax.Array, total: jax.Array) -> jax.Array:
            value = plgpu.load(values.at[entry], mask=is_one, other=0.0)
            code = plgpu.load(codes.at[entry], mask=is_one, other=0)
            return total + value * read(code, is_one)

        zeros = jnp.zeros((work.block.pixels, work.block.images), jnp.float32)
        total = _over_entries(starts, channel, work.block.unroll, add, zeros)
        at = (channel * work.size**2 + pixels) * work.batch + images
        plgpu.store(out.at[at], total.astype(out.dtype), mask=inside)

    if work.block.channels == 1:
        make_channel(jnp.int32(0), None)
    else:
        lax.fori_loop(0, work.block.channels, make_channel, None)


def _grad_values(
    layer: Layer,
    block: Block,
    interpret: bool,
    images: jax.Array,
    grads: jax.Array,
    lists: Lists,
) -> jax.Array:
    capacity = lists.codes.shape[0]
    work = _work(block, layer.outputs, layer.out_size, images.shape[-1])
    blocks = math.prod(work.grid[1:])
    parts = pl.pallas_call(
        functools.partial(_grad_values_kernel, layer, work, capacity),
        grid=(math.prod(work.grid),),
        out_shape=jax.ShapeDtypeStruct((blocks * capacity,), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=block.warps, num_stages=1),
        interpret=interpret,
    )(lists.starts, lists.codes, images.reshape(-1), grads.reshape(-1))
    # The entries beyond the last weight were never written.
    is_active = jnp.arange(capacity, dtype=jnp.int32) < lists.starts[-1]
    return jnp.where(is_active, parts.reshape(blocks, capacity).sum(0), 0.0)


def _grad_values_kernel(layer: Layer, work: _Work, capacity: int, *refs: Any) -> None:
    starts, codes, source, grads, parts = refs
    group, images, pixels = work.indices()
    inside = work.inside(images, pixels)
    read = _reader(layer, work, False, source, images, pixels, inside)
    part = lax.div(pl.program_id(0), work.grid[0])

    # A channel without weights reads no gradients.
    shape = (work.block.pixels, work.block.images)
    has_any = jnp.broadcast_to(starts[group] < starts[group + 1], shape)
    at = (group * work.size**2 + pixels) * work.batch + images
    mask = has_any if inside is None else has_any & inside
    grad = plgpu.load(grads.at[at], mask=mask, other=0.0).astype(jnp.float32)

    def add(entry: jax.Array, is_one: jax.Array, _: Any) -> None:
        code = plgpu.load(codes.at[entry], mask=is_one, other=0)
        products = grad * read(code, is_one)
        # Pixels first: these lie in a thread's registers, images across threads.
        total = jnp.sum(jnp.sum(products, axis=0), axis=0)
        plgpu.store(parts.at[part * capacity + entry], total, mask=is_one)

    _over_entries(starts, group, work.block.unroll, add, None)


def _over_entries(starts: Any, channel: Any, unroll: int, body: Any, init: Any) -> Any:
    """Folds `body(entry, is_one, carry)` over a channel's list.

    The list is unrolled; `is_one` is False for entries beyond its end.
    """
    start, stop = starts[channel], starts[channel + 1]

    def step(nth: jax.Array, carry: Any) -> Any:
        for ahead in range(unroll):
            entry = start + nth * unroll + ahead
            carry = body(entry, entry < stop, carry)
        return carry

    return lax.fori_loop(0, lax.div(stop - start + (unroll - 1), unroll), step, init)


def _reader(
    layer: Layer,
    work: _Work,
    transposed: bool,
    source: Any,
    images: jax.Array,
    pixels: jax.Array,
    inside: jax.Array | None,
) -> Any:
    """Returns a function that loads the block that a weight reads, float32, 0 outside of images."""
    before = layer.padding[0]
    y, x = lax.div(pixels, work.size), lax.rem(pixels, work.size)
    if transposed:
        size, y, x = layer.out_size, y + before, x + before
    else:
        size, y, x = layer.size, y * layer.stride - before, x * layer.stride - before
    divide = transposed and layer.stride > 1
    check = any(layer.padding) or divide or bool(work.size**2 % work.block.pixels)

    def along(start: jax.Array, tap: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        at = start - tap if transposed else start + tap
        if not divide:
            return at, [at >= 0, at < size] if check else []
        down = lax.div(at, layer.stride)
        return down, [at >= 0, lax.rem(at, layer.stride) == 0, down < size]

    def read(code: jax.Array, is_one: jax.Array) -> jax.Array:
        at_y, y_masks = along(y, (code >> 4) & 15)
        at_x, x_masks = along(x, code & 15)
        at = (((code >> 8) * size + at_y) * size + at_x) * work.batch + images
        masks = [*y_masks, *x_masks, *([] if inside is None else [inside])]
        if work.block.unroll > 1:
            masks.append(is_one)
        mask = _all(masks, (work.block.pixels, work.block.images))
        other = None if mask is None else 0.0
        return plgpu.load(source.at[at], mask=mask, other=other).astype(jnp.float32)

    return read


def _all(masks: list[jax.Array], shape: tuple[int, int]) -> jax.Array | None:
    """The conjunction of masks, broadcast to the full block; None if there are no masks."""
    if not masks:
        return None
    return functools.reduce(jnp.logical_and, [jnp.broadcast_to(mask, shape) for mask in masks])
