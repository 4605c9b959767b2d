"""Random keys: one key from the caller, and everything that is drawn folds in what it is for."""

import zlib

import jax


def fold_key(key: jax.Array | None, *data: int | str | jax.Array) -> jax.Array | None:
    """Folds tags, steps and paths into a key, in order; strings by a hash that never changes.

    None stays None, so that a method that needs no randomness needs no key.
    """
    for item in data:
        if key is None:
            return None
        number = zlib.crc32(item.encode()) & 0x7FFFFFFF if isinstance(item, str) else item
        key = jax.random.fold_in(key, number)
    return key
