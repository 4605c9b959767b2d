import gzip
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from experiments.data import cifar10, cifar100, fashion_mnist, prepare
from tests.experiments import cifar_copies as copies

MODULES = {"cifar10": cifar10, "cifar100": cifar100}
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=copies.FOLDER, ids="-".join)
def copy(request, monkeypatch):
    """A module that takes the small copies for the published ones, the layout, its files."""
    name, layout = request.param
    module = MODULES[name]
    monkeypatch.setattr(module, "OFFICIAL", copies.official(module))
    return module, layout, copies.files(name, layout)


def check_content(module, content):
    expected = copies.batches(module.NAME)
    for split, names in module.OFFICIAL.batches.items():
        columns = content.columns[split]
        images = np.concatenate([expected[name][0] for name in names])
        np.testing.assert_array_equal(columns["image"], images)
        for row, feature in enumerate(module.OFFICIAL.labels):
            labels = np.concatenate([expected[name][1][row] for name in names])
            np.testing.assert_array_equal(columns[feature], labels)
        assert columns["id"][:2] == [f"{split}_00000", f"{split}_00001"]
    if module is cifar100:
        assert content.names == {"coarse_label": copies.COARSE, "label": copies.FINE}
    else:
        assert content.names["label"][:3] == ("airplane", "automobile", "bird")


def test_every_layout_of_a_folder_and_of_an_archive(copy, tmp_path):
    module, layout, files = copy
    folder = copies.FOLDER[module.NAME, layout]
    inner = copies.write_folder(tmp_path / "unpacked" / folder, files)
    archive = copies.write_tar(tmp_path / "copy.tar.gz", folder, files)
    for source in (inner, inner.parent, archive):
        check_content(module, module.read_copy(source))


def test_other_content_is_refused(copy, tmp_path):
    module, layout, files = copy
    batch = f"{module.OFFICIAL.batches['test'][0]}"
    name = f"{batch}{ {'binary': '.bin', 'python': '', 'sheets': '.png'}[layout] }"
    if layout == "sheets":
        files["test_lables.json"] = files["test_lables.json"].replace(b"[", b"[9, ")
        name = f"{batch}.bin"  # what it becomes
    else:
        files[name] = files[name][:-5] + bytes([files[name][-5] ^ 1]) + files[name][-4:]
    source = copies.write_folder(tmp_path / "copy", files)
    expected = module.OFFICIAL.md5[f"{batch}.bin" if layout == "sheets" else name]
    with pytest.raises(ValueError, match=f"copy: md5 of {name} is [0-9a-f]*, expected {expected}"):
        module.read_copy(source)


def test_a_missing_file_is_named(copy, tmp_path):
    module, _, files = copy
    name = sorted(files)[0]
    del files[name]
    source = copies.write_folder(tmp_path / "copy", files)
    with pytest.raises(FileNotFoundError, match=f"copy: {name} expected in it"):
        module.read_copy(source)


def test_a_pickle_that_is_not_official_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    files = copies.files("cifar10", "python") | {"data_batch_1": pickle.dumps(Trap())}
    source = copies.write_folder(tmp_path / "copy", files)
    with pytest.raises(ValueError, match="md5 of data_batch_"):
        cifar10.read_copy(source)
    assert not (tmp_path / "sprung").exists()


def test_an_official_archive_is_trusted_as_a_whole(tmp_path, monkeypatch):
    archive = copies.write_tar(tmp_path / "c.tgz", "x", copies.files("cifar100", "binary"))
    with pytest.raises(ValueError, match="md5 of train.bin is"):
        cifar100.read_copy(archive)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar100, "OFFICIAL", cifar100.OFFICIAL._replace(archive_md5=[md5]))
    check_content(cifar100, cifar100.read_copy(archive))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "expected a whole tar file"),
        (b"", "expected a whole tar file"),
    ],
)
def test_no_archive(tmp_path, content, message):
    source = tmp_path / "cifar-10-binary.tar.gz"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=f"{source.name}: {message}"):
        cifar10.read_copy(source)


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_truncated_archive(tmp_path, kept):
    source = copies.write_tar(tmp_path / "c.tar.gz", "x", copies.files("cifar10", "binary"))
    content = source.read_bytes()
    source.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="c.tar.gz: expected a whole tar file"):
        cifar10.read_copy(source)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_bit_of_an_archive(tmp_path, monkeypatch, place):
    monkeypatch.setattr(cifar10, "OFFICIAL", copies.official(cifar10))
    source = copies.write_tar(tmp_path / "c.tar.gz", "x", copies.files("cifar10", "binary"))
    content = bytearray(gzip.compress(gzip.decompress(source.read_bytes()), 0))
    content[int(place * len(content))] ^= 1
    source.write_bytes(content)
    with pytest.raises(ValueError, match="c.tar.gz: "):
        cifar10.read_copy(source)


def test_binary_of_a_wrong_length(tmp_path, monkeypatch):
    files = copies.files("cifar10", "binary")
    files["test_batch.bin"] += b"\0"
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cifar10, "OFFICIAL", cifar10.OFFICIAL._replace(md5=md5))
    with pytest.raises(ValueError, match="copy: not the files of binary CIFAR"):
        cifar10.read_copy(copies.write_folder(tmp_path / "copy", files))


def test_the_other_data_set_lacks_files(tmp_path):
    source = copies.write_tar(tmp_path / "c.tar.gz", "x", copies.files("cifar10", "binary"))
    with pytest.raises(FileNotFoundError, match=r"c.tar.gz: .*train.* expected in it"):
        cifar100.read_copy(source)


@pytest.mark.parametrize("name", MODULES)
def test_stock_tfds_reads_what_is_prepared_and_so_does_load(name, tmp_path, monkeypatch, capsys):
    import tensorflow_datasets as tfds

    module = MODULES[name]
    monkeypatch.setattr(module, "OFFICIAL", copies.official(module))
    files = copies.files(name, "python")
    archive = copies.write_tar(tmp_path / "c.tar.gz", "x", files)
    data_dir = tmp_path / "data"
    assert prepare.main([name, f"--data_dir={data_dir}", f"--from={archive}"]) == 0
    folder = data_dir / name / module.VERSION
    assert capsys.readouterr().out == f"{name} is complete in {folder}\n"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", module.VERSION]

    expected = module.read_copy(archive)
    dataset = module.load(data_dir, val_fraction=0.25)
    assert (dataset.name, dataset.num_classes) == (name, module.NUM_CLASSES)
    for split, parts in (("train", (dataset.train, dataset.val)), ("test", (dataset.test,))):
        columns = expected.columns[split]
        np.testing.assert_array_equal(np.concatenate([p.images for p in parts]), columns["image"])
        labels = np.concatenate([part.labels for part in parts])
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, columns["label"])
        assert not any(array.flags.writeable for part in parts for array in part)

        stock = tfds.data_source(name, split=split, data_dir=data_dir)
        assert len(stock) == len(columns["label"])
        for example in stock:
            index = int(example["id"].decode().removeprefix(f"{split}_"))
            np.testing.assert_array_equal(example["image"], columns["image"][index])
            for feature in module.OFFICIAL.labels:
                assert example[feature] == columns[feature][index]
    builder = tfds.builder(name, data_dir=data_dir)
    assert builder.info.features["label"].names == list(expected.names["label"])
    assert builder.version == module.VERSION
    assert [len(split.labels) for split in module.load(data_dir, val_fraction=0.0)[1:4]] == [
        len(expected.columns["train"]["label"]),
        0,
        len(expected.columns["test"]["label"]),
    ]


def test_missing_says_where_and_how(tmp_path):
    data_dir = tmp_path / "my data"
    with pytest.raises(FileNotFoundError) as raised:
        cifar10.load(data_dir)
    assert str(raised.value) == (
        f"cifar10 expected in {data_dir}/cifar10/3.0.2; get it with: "
        f"python experiments/data/prepare.py cifar10 --data_dir='{data_dir}'"
    )


@pytest.mark.parametrize("deeper", ["cifar10", "cifar10/3.0.2"])
def test_a_folder_too_deep_says_which_one_it_is(deeper, tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").touch()
    with pytest.raises(FileNotFoundError) as missing:
        cifar10.load(tmp_path / deeper)
    assert str(missing.value).endswith(
        f"3.0.2; it is in {tmp_path}/cifar10/3.0.2: pass --data_dir={tmp_path}"
    )


@pytest.mark.parametrize("load", [cifar10.load, fashion_mnist.load])
def test_a_file_is_no_folder(load, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=f"--data_dir={tmp_path}/file is a file, expect"):
        load(tmp_path / "file")


def test_full_cifar10_known_answers():
    data_dir = Path(os.environ.get("JAXSPARSE_DATA_DIR", REPOSITORY / "data"))
    try:
        dataset = cifar10.load(data_dir)
    except FileNotFoundError:
        pytest.skip("CIFAR-10 is not in ./data or $JAXSPARSE_DATA_DIR")
    assert [len(split.labels) for split in dataset[1:4]] == [45_000, 5_000, 10_000]
    images, labels = (np.concatenate(both) for both in zip(dataset.train, dataset.val, strict=True))
    # Back in the official layout, the content has the published md5s: order and all.
    for split, count in (((images, labels), 5), (dataset.test, 1)):
        names = cifar10.OFFICIAL.batches["train" if count == 5 else "test"]
        parts = (np.array_split(array, count) for array in split)
        for name, x, y in zip(names, *parts, strict=True):
            records = np.column_stack([y.astype(np.uint8), copies.planes(x)])
            assert hashlib.md5(records.tobytes()).hexdigest() == cifar10.OFFICIAL.md5[f"{name}.bin"]
    # Shuffled already, so a cut at the end is a fair validation set.
    tenths = np.stack([np.bincount(tenth) for tenth in labels.reshape(10, 5_000)])
    assert (tenths.min(), tenths.max()) == (449, 543)
    assert np.bincount(dataset.val.labels).tolist() == VAL_COUNTS
    pixels = images / np.float32(255)
    np.testing.assert_allclose(pixels.mean((0, 1, 2), np.float64), cifar10.MEAN, atol=1e-4)
    np.testing.assert_allclose(pixels.std((0, 1, 2), np.float64), cifar10.STD, atol=1e-4)


VAL_COUNTS = [493, 488, 479, 519, 475, 529, 488, 485, 532, 512]
