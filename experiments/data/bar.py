"""The progress bar of reading, writing and fetching data."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, desc: str, **options: Any) -> tqdm:
    """Returns a bar for a terminal; in a log file it adds a line every ten seconds.

    Args:
      total: number of units to come; None if unknown.
      desc: what is going on.
      **options: other options of tqdm.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=desc, dynamic_ncols=True, mininterval=interval, **options)
