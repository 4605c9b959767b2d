"""Which kernels are loaded; all of them agree, to the bit for any number of threads."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsparse.kernels import build, load

V2, V3, V4 = (load.LEVELS[f"x86-64-v{n}"] for n in (2, 3, 4))
RUNS = Path(__file__).parent / "run_kernels.py"


@pytest.fixture
def folder(tmp_path):
    """Empty libraries with the right stamps."""
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        library = tmp_path / "new"
        library.write_bytes(level.encode())
        library.rename(tmp_path / f"{level}-{build._stamp(library)}.so")
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "able", "expected"),
    [
        ("", V2 | V3 | V4, "x86-64-v4"),
        ("", V2 | V3, "x86-64-v3"),
        ("", V2 | V3 | V4 - {"avx512vl"}, "x86-64-v3"),
        ("", V2, "x86-64-v2"),
        ("x86-64-v3", V2 | V3 | V4, "x86-64-v3"),
        ("", {"sse2"}, "this machine cannot run x86-64-v4, x86-64-v3, x86-64-v2, the kernels that"),
        ("x86-64-v4", V2 | V3, "this machine cannot run x86-64-v4, the kernels that were built"),
        ("armv8-a", {"asimd"}, "JAXSPARSE_KERNELS=armv8-a, but built were x86-64-v4, x86-64-v3"),
        ("avx2", V2 | V3, "JAXSPARSE_KERNELS=avx2 is none of x86-64-v4, .*, armv8-a, off"),
        ("off", V2, "JAXSPARSE_KERNELS=off"),
    ],
)
def test_the_best_that_a_machine_can_run(folder, wanted, able, expected):
    chosen = load.choose(wanted, able, folder)
    if expected in load.LEVELS:
        assert chosen[0] == expected and chosen[1] in build.libraries_of(expected, folder)
    else:
        assert isinstance(chosen, str) and re.match(expected, chosen)


def test_a_level_that_was_not_built(folder):
    for library in folder.glob("x86-64-v4-*"):
        library.unlink()
    assert load.choose("", V2 | V3 | V4, folder)[0] == "x86-64-v3"


@pytest.mark.parametrize("exists", [False, True])
def test_no_folder_or_nothing_in_it(tmp_path, exists):
    folder = tmp_path / "lib"
    if exists:
        folder.mkdir()
    assert load.choose("", V2, folder) == (
        f"no kernels were built into {folder}; `python -m jaxsparse.kernels.build` makes them"
    )


def test_kernels_of_other_sources_are_left_alone(folder, tmp_path, monkeypatch):
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCE.parent, sources)
    monkeypatch.setattr(build, "SOURCE", sources / "ffi.cc")
    assert isinstance(load.choose("", V2, folder), tuple)
    header = sources / "vec.h"
    header.write_text(header.read_text() + "// Changed.")
    why = load.choose("", V2, folder)
    assert isinstance(why, str) and "were made from other sources, or are damaged" in why


def test_damaged_kernels_are_left_alone(folder):
    """Loading them would crash the process."""
    for library in folder.iterdir():
        library.write_bytes(library.read_bytes()[:-1])
    assert "are damaged" in load.choose("", V2, folder)


def test_features_of_this_machine(monkeypatch):
    if sys.platform == "linux":
        assert any(needed <= load.features() for needed in load.LEVELS.values())
    monkeypatch.setattr(load.platform, "machine", lambda: "arm64")
    assert load.features() == {"asimd"}


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no library"])
def test_what_is_no_library_is_no_error(content, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(load, "features", lambda: V2)
    library = tmp_path / "new"
    library.write_bytes(content)
    library.rename(tmp_path / f"x86-64-v2-{build._stamp(library)}.so")
    monkeypatch.delenv("JAXSPARSE_KERNELS", raising=False)
    name, why = load._load.__wrapped__()
    assert name == "jax" and why.startswith(f"the kernels cannot be loaded, {tmp_path}")


def test_a_kernel_that_jax_refuses_is_no_error(tmp_path, monkeypatch, compiled):
    """For example one that was compiled for a later jaxlib. JAX still works."""
    monkeypatch.setenv("JAXSPARSE_KERNELS", load.backend().why)

    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("API version (0.9) is incompatible")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    name, why = load._load.__wrapped__()
    assert name == "jax" and "API version (0.9) is incompatible; `python -m" in why


def results(path, threads, level=""):
    """The results of the kernels of a level, in a process whose XLA has a number of threads."""
    env = {"JAXSPARSE_KERNELS": level, "JAX_NUM_CPU_DEVICES": str(threads), "NPROC": str(threads)}
    command = [sys.executable, os.fspath(RUNS), os.fspath(path)]
    subprocess.run(command, env=os.environ | env, check=True)
    with np.load(path) as file:
        found = dict(file)
    assert found.pop("threads") == threads
    return found, str(found.pop("level"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    if load.backend().name != "compiled":
        pytest.skip(load.backend().why)
    return results(tmp_path_factory.mktemp("kernels") / "all.npz", 7)[0]


def test_the_same_whatever_the_number_of_threads(reference, tmp_path):
    alone, _ = results(tmp_path / "alone.npz", 1)
    for name in reference:
        assert alone[name].tobytes() == reference[name].tobytes(), name


@pytest.mark.parametrize("level", [*load.LEVELS, "off"])
def test_all_levels_agree(level, reference, tmp_path):
    if level != "off":
        chosen = load.choose(level, load.features(), build.FOLDER)
        if isinstance(chosen, str):
            pytest.skip(chosen)
    found, why = results(tmp_path / "level.npz", 3, level)
    assert why == (level if level != "off" else "JAXSPARSE_KERNELS=off")
    for name, expected in reference.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[name] / scale, expected / scale, rtol=0, atol=3e-6)
