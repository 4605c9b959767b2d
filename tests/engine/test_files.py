"""Files of networks: what is written is read; what is damaged gets one clear error."""

import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.engine.files import load_engine, save_engine
from jaxsparse.engine.inference import compile_inference
from tests.engine.agreement import numbers
from tests.engine.drawn import SHAPE, drawn


@pytest.fixture(scope="module")
def engine():
    network = drawn(4)
    return compile_inference(
        lambda _, x: network(x), {}, None, np.zeros((1, *SHAPE), np.float32), threads=1
    )


@pytest.fixture
def file(engine, tmp_path):
    path = tmp_path / "network.jse"
    assert save_engine(path, engine) == path.stat().st_size
    return path


def with_body(data: bytes, body: bytes) -> bytes:
    """A file with another body, whose length and checksum are right."""
    return data[:12] + struct.pack("<II", zlib.crc32(body), len(body)) + body


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_there_and_back(engine, file, threads):
    x = numbers(17, *SHAPE)
    found = load_engine(file, threads)(x)
    for got, want in zip(found, jax.tree.leaves(engine(x)), strict=True):
        np.testing.assert_array_equal(got, want.reshape(len(x), -1))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_memory(file):
    loaded = load_engine(file, 1)
    before = loaded.memory
    loaded(numbers(1, *SHAPE))
    assert loaded.memory > before > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "this is no network"),
        (lambda data: b"JSENGINE", "this is no network"),
        (lambda data: b"something else, and longer than a head", "this is no network"),
        (lambda data: data[:-1], "cut off or too long"),
        (lambda data: data[: len(data) // 2], "cut off or too long"),
        (lambda data: data + b"\0", "cut off or too long"),
        (lambda data: data[:8] + struct.pack("<I", 77) + data[12:], "version 77"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "damaged"),
        (lambda data: with_body(data, data[20:-4]), "it ends too early"),
        (lambda data: with_body(data, data[20:] + bytes(4)), "more bytes than its parts"),
        (lambda data: with_body(data, b""), "it ends too early"),
        (lambda data: with_body(data, b"\xff" * 400), "families is -1"),
    ],
)
def test_damaged(file, change, message):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"network.jse: .*{message}"):
        load_engine(file, 1)


def test_every_byte(file):
    """Each wrong byte is found by the checksum."""
    data = file.read_bytes()
    for at in range(0, len(data), 7):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="network"):
            load_engine(file, 1)


def test_not_there(file):
    with pytest.raises(FileNotFoundError):
        load_engine(file.with_name("missing.jse"))
    with pytest.raises(OSError, match="directory"):
        load_engine(file.parent)
    with pytest.raises(ValueError, match="threads"):
        load_engine(file, 0)


def test_wrong_inputs(file):
    loaded = load_engine(file, 1)
    with pytest.raises(ValueError, match="2 inputs, the network takes 1"):
        loaded(numbers(1, *SHAPE), numbers(1, *SHAPE))
    with pytest.raises(ValueError, match="an image has 168 numbers"):
        loaded(numbers(2, 5))


def test_parts_of_xla(tmp_path):
    gram = compile_inference(
        lambda _, x: jnp.einsum("nc,nd->ncd", x, x) @ np.eye(3, dtype=np.float32),
        {},
        None,
        np.zeros((1, 3), np.float32),
    )
    meets = compile_inference(lambda _, x: x * x[:1], {}, None, np.zeros((1, 3), np.float32))
    for engine in (gram, meets):
        with pytest.raises(ValueError, match="parts of the network need XLA"):
            save_engine(tmp_path / "network.jse", engine)
    assert list(tmp_path.iterdir()) == []
