import io
import re
import tarfile

import pytest

from experiments.data.tar_members import Member, members

FILES = {"a/one.txt": b"1" * 700, "two": b"", "three": b"3" * 512}


def tar(files, tar_format=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def contents(path, listed):
    whole = path.read_bytes()
    return {m.name: whole[m.offset : m.offset + m.size] for m in listed}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.tar"


def test_known_places(path):
    path.write_bytes(tar(FILES))
    # A block for each header; the folder "a" has no content, "a/one.txt" two blocks.
    assert list(members(path)) == [
        Member("a/one.txt", 1024, 700),
        Member("two", 2560, 0),
        Member("three", 3072, 512),
    ]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_tars_in_tars(path, tar_format):
    files = FILES | {"ö" * 150: b"long", "x" * 300: b"longer"}
    path.write_bytes(tar({"first": b"f" * 99, "inner.tar": tar(files, tar_format)}, tar_format))
    first, inner = members(path)
    assert contents(path, [first]) == {"first": b"f" * 99}
    assert contents(path, members(path, inner)) == files


def test_an_empty_tar_has_no_members(path):
    path.write_bytes(tar({}))
    assert list(members(path)) == []


# Bytes that are left of the tar above: in the first content, in a header, at the end of a content,
# in the last content, without the block of zeros, with half of it.
@pytest.mark.parametrize(
    ("left", "last"),
    [
        (1500, "a"),
        (2100, "a/one.txt"),
        (2560, "two"),
        (3100, "two"),
        (3584, "three"),
        (3800, "three"),
    ],
)
def test_a_tar_that_is_cut_off(path, left, last):
    path.write_bytes(tar(FILES)[:left])
    expected = f"{path} is cut off: its last whole file is {last}; get it again"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        list(members(path))


def test_a_tar_in_a_tar_that_is_cut_off(path):
    # Its bytes go on in the outer tar, which must not be taken for its own.
    path.write_bytes(tar({"inner.tar": tar(FILES)[:3584], "next": b""}))
    inner = next(members(path))
    with pytest.raises(ValueError, match=r"x.tar: inner.tar is cut off: .* three; get it again$"):
        list(members(path, inner))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + bytes(2000)])
def test_something_else(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.tar is no whole, uncompressed tar"):
        list(members(path))
