"""How the kernels are compiled and packed, with fast stand-in compilers and without any."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsparse.kernels import build

ROOT = Path(build.__file__).parents[2]
QUICK = """#!/bin/sh
for last; do :; done
echo "$@" > "$last"
"""
BROKEN = """#!/bin/sh
echo "ffi.cc:1: no" >&2
exit 1
"""


@pytest.fixture
def levels():
    found = build.LEVELS.get(build.platform.machine())
    if found is None or sys.platform == "win32":
        pytest.skip(f"no kernels for {sys.platform} on {build.platform.machine()}")
    return found


@pytest.fixture
def compile_with(tmp_path, monkeypatch):
    """Sets the compiler to a script."""

    def use(script, options=""):
        path = tmp_path / "compiler"
        path.write_text(script)
        path.chmod(0o755)
        monkeypatch.setenv("CXX", f"{path}{options}")

    return use


def test_a_library_for_every_level_and_the_engine_in_place_of_the_old(
    levels, compile_with, tmp_path
):
    folder = tmp_path / "lib"
    compile_with(QUICK, options=" -fcolor")
    libraries = build.build(folder)
    assert sorted(libraries) == sorted(folder.iterdir())
    assert [path.name.rpartition("-")[0] for path in libraries] == [*levels, "engine"]
    assert all(map(build.is_of_these_sources, libraries))
    *of_levels, engine = libraries
    for options, path in zip(levels.values(), of_levels, strict=True):
        given = path.read_text().split()
        assert "-fcolor" in given and {*options, str(build.SOURCE)} <= set(given)
    given = engine.read_text().split()
    assert "-fcolor" in given and str(build.ENGINE) in given
    assert build.engine_library(folder) == engine
    compile_with(QUICK, options=" -fother")
    others = build.build(folder)
    assert sorted(others) == sorted(folder.iterdir()) and not {*others} & {*libraries}


def test_what_does_not_compile_changes_nothing(levels, compile_with, tmp_path):
    compile_with(QUICK)
    libraries = build.build(tmp_path / "lib")
    compile_with(BROKEN)
    with pytest.raises(RuntimeError, match=r"cannot compile .*ffi.cc for .*: ffi.cc:1: no"):
        build.build(tmp_path / "lib")
    assert sorted((tmp_path / "lib").iterdir()) == sorted(libraries)


def test_no_compiler(levels, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler, none of /nonexistent"):
        build.build(tmp_path / "lib")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"none of c\+\+, g\+\+, clang\+\+"):
        build.build(tmp_path / "lib")


def test_no_headers_and_no_level(tmp_path, monkeypatch, compile_with):
    compile_with(QUICK)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="jaxlib with its headers is not installed"):
        build.build(tmp_path / "lib")
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    with pytest.raises(RuntimeError, match="no kernels for .* on riscv64"):
        build.build(tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


def test_the_command(levels):
    """It prints no warning, and one line if something is wrong."""
    command = [sys.executable, "-W", "error", "-m", "jaxsparse.kernels.build"]
    done = subprocess.run(
        command, env={"CXX": "/nonexistent"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there is no C++ compiler, none of /nonexistent\n"


@pytest.fixture
def hook(tmp_path):
    """The build hook, with a root that has only the sources of the kernels."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "root" / "jaxsparse" / "kernels"
    shutil.copytree(build.SOURCE.parent, folder / "csrc")
    shutil.copy(build.__file__, folder)
    return module.KernelsHook(str(tmp_path / "root"), {}, None, None, str(tmp_path), "wheel")


def test_wheels_have_the_libraries_inside(hook, levels, compile_with, capsys):
    compile_with(QUICK)
    data = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", data)
    root = Path(hook.root)
    libraries = sorted((root / "jaxsparse" / "kernels" / "lib").iterdir())
    assert len(libraries) == len(levels) + 1
    assert sorted(root / path for path in data["artifacts"]) == libraries
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-") and "." not in data["tag"]
    assert not any(capsys.readouterr())


def test_without_a_compiler_wheels_are_pure(hook, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nonexistent")
    data = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", data)
    assert data == {"artifacts": [], "pure_python": True}
    assert "jaxsparse without compiled kernels: there is no C++ comp" in "".join(
        capsys.readouterr()
    )
