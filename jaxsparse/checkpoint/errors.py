"""Errors of reading and writing: which ones are the system's, and a short reason for each."""

import errno
import os
import re


def of_system(error: Exception, name: str) -> MemoryError | OSError | None:
    """Returns the error to raise if a read failed although the checkpoint is not damaged.

    Such errors are a lack of memory, and errors of the operating system (permissions, too many open
    files). A missing file is damage, so None is returned for it, as for everything else.

    Args:
      error: the error of a read.
      name: name of the checkpoint, for the message.
    """
    if isinstance(error, MemoryError):
        return error
    if _os_error_code(error) not in (None, errno.ENOENT):
        return OSError(f"{name} could not be read: {reason(error)}; it is as it was")
    return None


def reason(error: BaseException) -> str:
    """Returns an error's reason, at most 120 characters.

    An error of the system gives the system's own words, not the pages that TensorStore prints.
    """
    if code := _os_error_code(error):
        return os.strerror(code)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."


def _os_error_code(error: BaseException) -> int | None:
    """The error number of an OSError, or the one in the text of an error of TensorStore."""
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None
