"""Where the header and the library are, in Python and on the command line."""

import ctypes

import pytest

from jaxsparse.engine import __main__ as command
from jaxsparse.engine import paths
from jaxsparse.kernels.build import ENGINE, FOLDER, engine_library
from jaxsparse.sparse import engine_paths

pytestmark = pytest.mark.skipif(engine_library() is None, reason="the engine was not built")


def test_both_are_in_the_package(capsys):
    found = engine_paths()
    assert found == (ENGINE.parent, engine_library()) and found.library.parent == FOLDER
    assert "jaxsparse_engine_run" in (found.include / paths.HEADER).read_text()
    command.main([])
    assert capsys.readouterr().out == f"{found}\n"
    for flag, expected in (("--include", found.include), ("--library", found.library)):
        command.main([flag])
        assert capsys.readouterr().out == f"{expected}\n"


def test_copies_have_plain_names(tmp_path, capsys):
    for _ in range(2):  # the second ones replace the first
        command.main([f"--copy={tmp_path / 'new' / 'folder'}"])
    copies = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in copies] == ["jaxsparse_engine.h", "libjaxsparse_engine.so"]
    assert ctypes.CDLL(str(copies[1])).jaxsparse_engine_open
    assert f"library: {copies[1]}" in capsys.readouterr().out


def test_paths_with_blanks_are_quoted(tmp_path):
    line = paths.EnginePaths(tmp_path / "a b", tmp_path / "lib.so").compile_line("my net.c")
    assert f"'-I{tmp_path}/a b'" in line and line.endswith("-o 'my net'")


def test_what_is_wrong_is_one_line(capsys, monkeypatch, tmp_path):
    for arguments in (["--libary"], ["--include", "--library"], ["network.jse"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and len(lines) == 1 and arguments[-1] in lines[0]
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*File exists"):
        command.main([f"--copy={tmp_path / 'file'}"])
    monkeypatch.setattr(paths, "engine_library", lambda: None)
    with pytest.raises(SystemExit, match="error: the engine was not built"):
        command.main([])
