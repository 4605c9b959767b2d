"""Sparse execution: layers whose time and memory fall with the number of active weights.

On several devices, cut the batch with `jax.shard_map`. Under `jax.jit` alone with sharded images
every device would gather all of them and compute everything, since the compiler cannot look into
the kernels. Gradients of arrays that are the same on all devices are summed over the devices, so
the loss takes the mean:

    def step(state, positions, images, labels):                    # images: a device's own
        mean = lambda params: jax.lax.pmean(loss(params, positions, images, labels), "data")
        value, grads = jax.value_and_grad(mean)(state.params)
        return state.apply_gradients(grads=grads), value

    same, cut = PartitionSpec(), PartitionSpec("data")              # mesh: of one axis, "data"
    step = jax.shard_map(step, mesh=mesh, in_specs=(same, same, cut, cut), out_specs=same)

With `check_vma=False` they are not summed; take the mean of the gradients instead.
"""

from jaxsparse.engine.files import LoadedEngine, load_engine, save_engine
from jaxsparse.engine.inference import CompiledInference, compile_inference
from jaxsparse.engine.paths import EnginePaths, engine_paths
from jaxsparse.engine.profile import Profile, ProfileStep
from jaxsparse.kernels.load import Backend, backend
from jaxsparse.sparse.allocator import keep_memory
from jaxsparse.sparse.choice import (
    BreakEven,
    LayerShape,
    break_even,
    choose_capacity,
    is_mostly_sparse,
)
from jaxsparse.sparse.convolution import Layout, sparse_conv, sparse_dot
from jaxsparse.sparse.inference import Epilogue, sparse_conv_norm
from jaxsparse.sparse.lines import larger_line
from jaxsparse.sparse.measure import LayerTimes, Measured, benchmark, measured_break_even
from jaxsparse.sparse.norm import batch_norm
from jaxsparse.sparse.positions import Positions, check_positions, to_dense, to_mask, to_sparse
from jaxsparse.sparse.states import (
    compress,
    compress_leaves,
    count_active,
    expand,
    expand_leaves,
    find_positions,
)
from jaxsparse.sparse.window import Window

__all__ = [
    "Backend",
    "BreakEven",
    "CompiledInference",
    "EnginePaths",
    "Epilogue",
    "LayerShape",
    "LayerTimes",
    "Layout",
    "LoadedEngine",
    "Measured",
    "Positions",
    "Profile",
    "ProfileStep",
    "Window",
    "backend",
    "batch_norm",
    "benchmark",
    "break_even",
    "check_positions",
    "choose_capacity",
    "compile_inference",
    "compress",
    "compress_leaves",
    "count_active",
    "engine_paths",
    "expand",
    "expand_leaves",
    "find_positions",
    "is_mostly_sparse",
    "keep_memory",
    "larger_line",
    "load_engine",
    "measured_break_even",
    "save_engine",
    "sparse_conv",
    "sparse_conv_norm",
    "sparse_dot",
    "to_dense",
    "to_mask",
    "to_sparse",
]
