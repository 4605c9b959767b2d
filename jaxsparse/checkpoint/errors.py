"""What goes wrong with a file, in a few words; the system's errors are no damage."""

import errno
import os
import re


def raise_if_of_system(error: Exception, name: str) -> None:
    """Raises what the system, and not the checkpoint, is to blame for: all but a missing file."""
    if isinstance(error, MemoryError):
        raise error
    if _os_error_code(error) not in (None, errno.ENOENT):
        raise OSError(f"{name} could not be read: {reason(error)}; it is as it was") from error


def reason(error: BaseException) -> str:
    """The reason in a few words: of the pages that TensorStore prints, the system's own."""
    if code := _os_error_code(error):
        return os.strerror(code)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."


def _os_error_code(error: BaseException) -> int | None:
    """The system's number of an error, of Python's or in the text of TensorStore's."""
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None
