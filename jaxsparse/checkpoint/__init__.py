"""Checkpoints with Orbax: a whole state to the bit, or one clear error.

    restored = restore_checkpoint("checkpoints", state)  # the same command continues the run
    start, state = (0, state) if restored is None else (restored.step, restored.state)
    for n in range(start + 1, total_steps + 1):
        state = train_step(state, batch_of(n), event=method.is_due(n))
        if n % 500 == 0:
            save_checkpoint("checkpoints", n, state)

    params = restore_part("checkpoints", "params")  # to evaluate: no optimizer, no method, no model

A state is any pytree of arrays and numbers: a `TrainState`, or a dict of params, masks, optimizer
state and key. Leaves are saved by path ("masks/Dense_0/kernel") with dtype, shape and checksum. A
part can therefore be read without the code that made the rest, and damage is found: Orbax itself
does not notice that a byte inside an array has changed.

When `save_checkpoint` returns, the checkpoint is complete, and the next step may donate the state.
With `wait=False` the step may donate it, too, but files are written in the background, and the next
call raises an error of it. Several processes all make the same calls on a folder that they share:
each writes and reads the parts of arrays that its devices hold. A checkpoint can be restored on any
number of devices and processes. `import jaxsparse` does not import this package, because Orbax is
slow to import.
"""

from jaxsparse.checkpoint.parts import restore_masks, restore_part, restore_parts
from jaxsparse.checkpoint.restore import Restored, restore_checkpoint
from jaxsparse.checkpoint.save import save_checkpoint, wait_for_checkpoint

__all__ = [
    "Restored",
    "restore_checkpoint",
    "restore_masks",
    "restore_part",
    "restore_parts",
    "save_checkpoint",
    "wait_for_checkpoint",
]
