"""Random keys: the caller gives one key, and each use of it folds in its purpose."""

import zlib

import jax


def fold_key(key: jax.Array | None, *data: int | str | jax.Array) -> jax.Array | None:
    """Folds data into a key, in order.

    Args:
      key: a key, or None. None stays None, so a method that draws nothing needs no key.
      *data: integers such as steps, or strings such as tags and paths. A string is folded in by its
        CRC-32, which is the same in every version.
    """
    for item in data:
        if key is None:
            return None
        number = zlib.crc32(item.encode()) & 0x7FFFFFFF if isinstance(item, str) else item
        key = jax.random.fold_in(key, number)
    return key
