"""One of two processes that share a mesh of eight devices: prints what it counts of shared masks.

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python tests/two_processes.py RANK PORT

No process holds a whole mask, so a mask that is brought to the host raises an error.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse


def drawn():
    """A kernel of 64 x 128 weights, about a fifth of them active, with dead inputs and outputs."""
    rng = np.random.default_rng(0)
    mask = rng.random((64, 128)) < 0.2
    mask[:, [3, 7]] = mask[5] = False
    return {"kernel": (rng.normal(size=mask.shape) * mask).astype(np.float32)}, {"kernel": mask}


def counted(params, masks, others):
    """What the library counts of these masks, as JSON can hold it."""
    found = {
        "num_active": jaxsparse.num_active(masks),
        "sparsity": jaxsparse.sparsity(masks),
        "summary": str(jaxsparse.summary(params, masks)),
        "dead": jaxsparse.dead_channels(masks["kernel"]),
        "overlap": float(jax.jit(jaxsparse.overlap)(masks, others).total),
        "explored": float(jaxsparse.exploration_rate(masks)),
    }
    method = jaxsparse.gmp(sparsity=0.9, total_steps=4, update_interval=2)
    optimizer = jaxsparse.sparse_optimizer(method, optax.sgd(0.1, momentum=0.9))
    params, state = jax.jit(optimizer.init)(params, key=jax.random.key(0), masks=masks)
    optimizer.check(params, state)
    for n in range(1, 3):
        step = jax.jit(optimizer.update, static_argnames="event")
        params, state = step(params, state, params, event=method.is_due(n))
    found["run"] = str(optimizer.summary(params, state))
    optimizer.check(params, state)
    weights = jax.jit(lambda x: x.at[60, 3:].set(2.5))(params["kernel"])
    try:
        jaxsparse.check({"kernel": weights}, (), state.masks)
    except ValueError as error:
        found["bad"] = str(error)
    return found


def main(rank, port):
    """Prints the counts of one process."""
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    place = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])
    params, masks = drawn()
    others = jax.tree.map(lambda mask: np.roll(mask, 1, 0), masks)
    params, masks, others = jax.tree.map(place, (params, masks, others))
    assert not masks["kernel"].is_fully_addressable and jnp.size(masks["kernel"]) == 64 * 128
    print(json.dumps(counted(params, masks, others)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
