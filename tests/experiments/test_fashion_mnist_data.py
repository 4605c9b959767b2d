import gzip
import hashlib
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.data import fashion_mnist, make_sample

REPOSITORY = Path(__file__).parents[2]


def idx(magic, shape, data):
    return struct.pack(f">I{len(shape)}I", magic, *shape) + bytes(data)


def small_files(num_train=20, num_test=10):
    """The content of a valid set by file name: image i of a split is filled with the byte i."""
    files = {}
    for prefix, num in (("train", num_train), ("t10k", num_test)):
        pixels = np.repeat(np.arange(num, dtype=np.uint8), 784)
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(0x803, (num, 28, 28), pixels)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(0x801, (num,), [i % 10 for i in range(num)])
    return files


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.fixture
def full_set():
    data_dir = Path(os.environ.get("JAXSPARSE_DATA_DIR", REPOSITORY / "data"))
    try:
        fashion_mnist.read(data_dir)
    except FileNotFoundError:
        pytest.skip("the full Fashion-MNIST is not in ./data or $JAXSPARSE_DATA_DIR")
    return data_dir


def test_sample_known_answers():
    dataset = fashion_mnist.load(None)
    assert (dataset.name, dataset.num_classes) == ("fashion_mnist_sample", 10)
    for split, num, mean in (
        (dataset.train, 4500, 73.3076),
        (dataset.val, 500, 72.9647),
        (dataset.test, 1000, 72.6709),
    ):
        assert (split.images.shape, split.images.dtype) == ((num, 28, 28, 1), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((num,), np.int32)
        assert np.bincount(split.labels).tolist() == [num // 10] * 10
        assert split.images.mean() == pytest.approx(mean, abs=1e-4)
    # The official training set begins 9 0 0 3 0 2 7 2 5 5: each class when it appears first.
    assert dataset.train.labels[:10].tolist() == [9, 0, 3, 2, 7, 5, 1, 6, 4, 8]


def test_sample_stays_small():
    files = list(fashion_mnist.SAMPLE_DIR.glob("*.gz"))
    assert len(files) == 4
    assert sum(path.stat().st_size for path in files) <= 3_000_000


def test_sample_readme_states_the_checksums():
    readme = (fashion_mnist.SAMPLE_DIR / "README.md").read_text()
    stated = {name: digest for digest, name in re.findall(r"([0-9a-f]{64})  (\S+)", readme)}
    files = fashion_mnist.SAMPLE_DIR.glob("*.gz")
    assert stated == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_full_set_known_answers(full_set):
    dataset = fashion_mnist.load(full_set)
    assert dataset.name == "fashion_mnist"
    assert [len(split.labels) for split in dataset[1:4]] == [54_000, 6_000, 10_000]
    both = np.concatenate([dataset.train.labels, dataset.val.labels])
    assert np.bincount(both).tolist() == [6_000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
    # Shuffled already, so a cut at the end is a fair validation set.
    tenths = np.stack([np.bincount(tenth) for tenth in both.reshape(10, 6_000)])
    assert (tenths.min(), tenths.max()) == (555, 654)
    pixels = np.concatenate([dataset.train.images, dataset.val.images])
    assert pixels.mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # the published mean


def test_sample_is_made_again_bit_for_bit(full_set, tmp_path):
    make_sample.make_sample(full_set, tmp_path)
    made, shipped = (
        {path.name: gzip.decompress(path.read_bytes()) for path in folder.glob("*.gz")}
        for folder in (tmp_path, fashion_mnist.SAMPLE_DIR)
    )
    assert made == shipped


def test_gzipped_idx_has_no_time_and_no_name():
    content = make_sample.gzipped_idx(np.array([[1, 2], [3, 4]], np.uint8))
    assert content[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    assert gzip.decompress(content) == idx(0x802, (2, 2), [1, 2, 3, 4])


def test_balanced_order_takes_turns():
    labels = np.array([2, 2, 2, 0, 1, 0, 1, 2, 1, 0])
    #           round: 0  1     0  0  1  1
    assert make_sample.balanced_order(labels, per_class=2).tolist() == [0, 3, 4, 1, 5, 6]


def test_balanced_order_needs_enough_images():
    with pytest.raises(ValueError, match="class 1 has 1 images, expected 2"):
        make_sample.balanced_order(np.array([0, 0, 1]), per_class=2)


@pytest.mark.parametrize("subfolder", ["", "fashion_mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_load_finds_the_files(tmp_path, subfolder, suffix):
    files = {name.removesuffix(".gz") + suffix: c for name, c in small_files().items()}
    write(tmp_path / subfolder, files)
    dataset = fashion_mnist.load(tmp_path, val_fraction=0.25)
    assert dataset.name == "fashion_mnist"
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(15))
    assert dataset.val.images[:, 27, 27, 0].tolist() == list(range(15, 20))
    assert dataset.val.labels.tolist() == [5, 6, 7, 8, 9]
    assert dataset.test.images[:, 0, 0, 0].tolist() == list(range(10))


def test_load_prefers_the_subfolder(tmp_path):
    write(tmp_path, small_files(num_test=3))  # it may be MNIST, whose files have the same names
    write(tmp_path / "fashion_mnist", small_files(num_test=7))
    assert len(fashion_mnist.load(tmp_path).test.labels) == 7


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_val_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=rf"val_fraction {fraction} must be in \[0, 1\)"):
        fashion_mnist.load(None, val_fraction=fraction)


def test_nothing_held_out():
    dataset = fashion_mnist.load(None, val_fraction=0.0)
    assert [len(split.labels) for split in dataset[1:4]] == [5_000, 0, 1_000]
    assert dataset.val.images.shape == (0, 28, 28, 1)


@pytest.mark.parametrize(("fraction", "num_train"), [(0.01, 20), (0.99, 0)])
def test_val_fraction_leaves_a_split_empty(tmp_path, fraction, num_train):
    write(tmp_path, small_files())
    with pytest.raises(ValueError, match=f"of 20 images leaves {num_train} for training"):
        fashion_mnist.load(tmp_path, val_fraction=fraction)


def test_missing_folder_says_where_and_how(tmp_path):
    data_dir = tmp_path / "my data"
    with pytest.raises(FileNotFoundError) as raised:
        fashion_mnist.load(data_dir)
    assert str(raised.value) == (
        "Fashion-MNIST: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz expected in "
        f"{data_dir}/fashion_mnist or {data_dir}; get it with: "
        f"python experiments/data/prepare.py fashion_mnist --data_dir='{data_dir}'"
    )


def test_one_missing_file_is_named(tmp_path):
    folder = write(tmp_path, small_files())
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="^Fashion-MNIST: t10k-labels-idx1-ubyte.gz expect"):
        fashion_mnist.load(tmp_path)


LABELS, IMAGES = "train-labels-idx1-ubyte.gz", "train-images-idx3-ubyte.gz"
DAMAGE = {
    "magic": (LABELS, idx(0x803, (20,), [0] * 20), "is 0x00000803, expected 0x00000801"),
    "header": (IMAGES, b"\0\0\x08\x03\0\0", "6 bytes, expected a header of 16 bytes"),
    "empty": (LABELS, b"", "0 bytes, expected a header of 8 bytes"),
    "truncated": (LABELS, idx(0x801, (20,), [0] * 19), r"19 bytes .* expected 20 for .*\(20,\)"),
    "too long": (LABELS, idx(0x801, (20,), [0] * 21), "21 bytes after the header, expected 20"),
    "huge": (IMAGES, idx(0x803, (2**32 - 1,) * 3, []), "0 bytes .* expected 79228162458924105"),
    "image size": (IMAGES, idx(0x803, (2, 2, 3), [0] * 12), r"\(2, 2, 3\), expected .*28, 28"),
    "no images": (IMAGES, idx(0x803, (0, 28, 28), []), r"\(0, 28, 28\), expected \(at least 1"),
    "count": (LABELS, idx(0x801, (19,), [0] * 19), "19 labels, expected 20, the number of im"),
    "label": (LABELS, idx(0x801, (20,), [0, 0, 0, 10] + [9] * 16), "label 10 at index 3, expected"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file(tmp_path, name, content, message):
    write(tmp_path, small_files() | {name: content})
    with pytest.raises(ValueError, match=f"{name}: .*{message}") as raised:
        fashion_mnist.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cut", [slice(0, 30), slice(0, -1), slice(2, None), slice(0, 5)])
def test_broken_gzip(tmp_path, cut):
    path = write(tmp_path, small_files()) / IMAGES
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(ValueError, match=f"{IMAGES}: .* expected a whole gzip file .* again"):
        fashion_mnist.load(tmp_path)
