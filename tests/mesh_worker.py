"""One of two processes that share a mesh of four devices: trains, saves, restores and exports.

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 python tests/mesh_worker.py RANK PORT FOLDER

The test that starts it (test_mesh_processes.py) takes the same functions for one process.
"""

import contextlib
import functools
import json
import resource
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse
from jaxsparse.checkpoint import restore_checkpoint, restore_part, save_checkpoint
from jaxsparse.checkpoint import wait_for_checkpoint as wait
from jaxsparse.csr import to_csr
from jaxsparse.processes import decided, problem_anywhere

METHOD = jaxsparse.granet_st(sparsity=0.8, total_steps=12, update_interval=2)
TX = optax.sgd(0.125, momentum=0.5)  # products with powers of two are exact, fused or not


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"a": {"kernel": draw(16, 12), "bias": draw(12)}, "b": {"kernel": draw(3, 8, 8)}}


def mesh_of(num_devices=None):
    return Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(AxisType.Auto,))


def sharded(mesh, x, fsdp=True):
    """Cuts the longest axis over the mesh if it divides."""
    axis = int(np.argmax(np.shape(x))) if np.ndim(x) > 1 else None
    cut = fsdp and axis is not None and np.shape(x)[axis] % mesh.size == 0
    return NamedSharding(mesh, P(*[None] * axis, "data") if cut else P())


def put(tree, shardings):
    """The host's arrays on a mesh, which several processes may share."""
    at = lambda x, place: jax.make_array_from_callback(x.shape, place, lambda part: x[part])
    return jax.tree.map(at, tree, shardings)


def create(mesh, fsdp=True, masks=None):
    """A state on a mesh, made outside of jit: only its params are placed."""
    params = drawn()
    return jaxsparse.TrainState.create(
        apply_fn=None,
        params=put(params, jax.tree.map(lambda x: sharded(mesh, x, fsdp), params)),
        tx=TX,
        method=METHOD,
        key=jax.random.key(3),
        masks=masks,
        track_exploration=True,
    )


@functools.partial(jax.jit, static_argnames="event", donate_argnums=0)
def step(state, grads, event):
    return state.apply_gradients(grads=grads, event=event)


def trained(state, first, last):
    """The state after some steps, whose gradients are drawn on the host."""
    for n in range(first, last + 1):
        grads = put(drawn(n), jax.tree.map(lambda w: w.sharding, state.params))
        state = step(state, grads, event=METHOD.is_due(n))
    return jax.block_until_ready(state)


def said(act):
    """The type and the message of the error that a call raises."""
    try:
        act()
    except Exception as error:  # whatever it is, both processes say it
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(folder):
    mesh, found = mesh_of(), {}
    restored = restore_checkpoint(folder / "start", create(mesh))
    state = restored.state
    found["shardings"] = sorted({str(x.sharding.spec) for x in jax.tree.leaves(state)})
    found["shared"] = all(not x.is_fully_addressable for x in jax.tree.leaves(state))
    state = trained(state, restored.step + 1, 6)
    found["at 6"] = int(jaxsparse.fingerprint(state))
    jaxsparse.check_replicas(state)
    save_checkpoint(folder / "two", 6, state, extras={"name": "x"})
    state = trained(state, 7, 8)
    found["at 8"] = int(jaxsparse.fingerprint(state))
    save_checkpoint(folder / "two", 8, state, wait=False)
    state = trained(state, 9, 10)  # donates what is being written
    save_checkpoint(folder / "two", 10, state, wait=False, keep=3)
    found["again"] = said(lambda: save_checkpoint(folder / "two", 10, state))
    wait(folder / "two")
    found["summary"] = str(state.summary())
    found["report"] = str(
        jaxsparse.save_safetensors(folder / "model.safetensors", state.params, state.masks)
    )
    kernel = state.params["a"]["kernel"], state.masks["a"]["kernel"]
    found["csr"] = np.asarray(to_csr(*kernel).values).tolist()
    found["pattern"] = said(lambda: jaxsparse.check_pattern(state.masks, jaxsparse.n_of_m(1, 4)))
    found["part"] = int(jaxsparse.fingerprint(restore_part(folder / "two", "masks", 8)))
    damage(folder / "two" / "10")
    back = restore_checkpoint(folder / "two", create(mesh))
    found["back"], found["note"] = [back.step, int(jaxsparse.fingerprint(back.state))], back.note
    found["given"] = int(jaxsparse.fingerprint(create(mesh, masks=back.state.masks).masks))
    found["full"] = full_disk(folder, back.state)
    found |= agreements()
    found["left"] = sorted(path.name for path in (folder / "two").iterdir())
    return found


def damage(checkpoint):
    """Process 0 changes a byte in the middle of every file of arrays, and all wait for it."""
    if jax.process_index() == 0:
        for path in (checkpoint / "arrays").glob("**/d/*"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)
    multihost_utils.sync_global_devices("damage")


def full_disk(folder, state):
    """Both processes can write no file of more than 100 bytes for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        return said(lambda: save_checkpoint(folder / "two", 9, state))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def agreements():
    """An error of one process reaches both; a result of process 0 is that of both."""
    rank = jax.process_index()

    def fail(kind):
        raise kind(f"at {rank}")

    problems = [ValueError("at 0") if rank == 0 else None, OSError("at 1") if rank == 1 else None]
    everywhere = [repr(problem_anywhere(problem)) for problem in problems]
    nowhere = problem_anywhere(None)
    return {
        "decided": decided(lambda: {"rank": rank}),
        "problems": [*everywhere, nowhere],
        "raised": [
            said(lambda kind=kind: decided(lambda: fail(kind))) for kind in (OSError, KeyError)
        ],
    }


def main(rank, port, folder):
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    with contextlib.redirect_stdout(sys.stderr):
        found = work(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
