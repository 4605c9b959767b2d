"""Errors of the system are raised as such, all others are damage; both have a short reason."""

import errno

import pytest

from jaxsparse.checkpoint.errors import of_system, reason

# TensorStore has no class for the system's errors: the number stands in its text.
OF_TENSORSTORE = ValueError(
    "NOT_FOUND: Error opening [source locations='kv.cc:1'; os_error_code='{}']"
)


def of_tensorstore(code):
    return ValueError(str(OF_TENSORSTORE).format(code))


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
        of_tensorstore(errno.EACCES),
    ],
)
def test_the_system_says_no(error):
    with pytest.raises(OSError, match=r"^checkpoint 1 could not be read: .*; it is as it was$"):
        raise of_system(error, "checkpoint 1")


def test_a_lack_of_memory_is_raised_as_it_is():
    error = MemoryError()
    assert of_system(error, "checkpoint 1") is error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        of_tensorstore(errno.ENOENT),
        ValueError("not JSON"),
        KeyError("records"),
    ],
)
def test_a_missing_file_and_what_makes_no_sense_are_damage(error):
    assert of_system(error, "checkpoint 1") is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_tensorstore(errno.ENOSPC), "No space left on device"),
        (OSError(errno.EROFS, "a long story"), "Read-only file system"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 120), "x" * 120),
        (ValueError("x" * 121), "x" * 117 + "..."),
    ],
)
def test_reasons_are_short(error, expected):
    assert reason(error) == expected
