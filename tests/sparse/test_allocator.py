"""Memory that is kept causes no page faults. Each test runs in its own process."""

import os
import subprocess
import sys

import pytest

from jaxsparse.sparse.allocator import ENVIRONMENT

# 64 MiB, above all that glibc would ever take from the heap by itself. What is imported is the
# file alone: JAX would bring threads, whose faults are not ours.
FAULTS = """
import resource, runpy, sys
kept = runpy.run_path(sys.argv[1])["keep_memory"]() if len(sys.argv) > 1 else None
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6):
    block = b"1" * 2**26
    del block
    before = before if _ else faults()
print(kept, faults() - before)
"""


def faults(*args, **environment):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *args],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], **environment},
    )
    kept, num = done.stdout.split()
    return kept, int(num)


@pytest.fixture
def path():
    if not any(
        "glibc" in name for name in os.confstr_names and [os.confstr("CS_GNU_LIBC_VERSION")]
    ):
        pytest.skip("the C library is not glibc")
    return sys.modules["jaxsparse.sparse.allocator"].__file__


def test_repeated_allocations_cause_no_page_faults(path):
    _, by_default = faults()
    kept, num = faults(path)
    assert kept == "True"
    assert by_default > 5 * 2**26 // 2**21  # one for each page, be they huge ones
    assert num * 10 < by_default


def test_the_environment_does_the_same(path):
    assert faults(**ENVIRONMENT)[1] * 10 < faults()[1]


def test_the_docstring_names_the_environment():
    from jaxsparse.sparse import keep_memory

    assert "".join(ENVIRONMENT["GLIBC_TUNABLES"].split()) in keep_memory.__doc__


def test_another_c_library_is_left_alone(monkeypatch):
    from jaxsparse.sparse import allocator

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_memory()
