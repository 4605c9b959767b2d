import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import imagenet_labels, imagenet_shards, imagenet_tars, prepare
from tests.experiments import small_imagenet as small

tfds = pytest.importorskip("tensorflow_datasets")

from tensorflow_datasets.core.hashing import Hasher  # noqa: E402
from tensorflow_datasets.core.utils.shard_utils import ShardConfig  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
NUM_FILES = 4
FOLDER = Path("imagenet2012", "5.1.0")


@pytest.fixture(scope="module")
def jpegs():
    return {"train": small.images("train", 40), "validation": small.images("validation", 20)}


@pytest.fixture(scope="module")
def official(tmp_path_factory, jpegs):
    return small.write_official(tmp_path_factory.mktemp("official"), **jpegs)


@pytest.fixture
def several_files(monkeypatch):
    """As for a data set of many gigabytes."""
    monkeypatch.setattr(ShardConfig, "calculate_number_shards", lambda *args: NUM_FILES)


def command(data_dir, copy):
    return prepare.main(["imagenet2012", f"--data_dir={data_dir}", f"--from={copy}", "--subset"])


def stock_source(data_dir, split):
    raw = {"image": tfds.decode.SkipDecoding()}
    return tfds.data_source(
        "imagenet2012", split=split, data_dir=data_dir, decoders=raw, download=False
    )


def stock(data_dir, split):
    examples = stock_source(data_dir, split)
    return [(x["file_name"].decode(), x["label"], x["image"]) for x in examples]


def everything(data_dir):
    """All that is prepared, in its order, but the bytes of files.

    The order of the features in a record differs from process to process, with TFDS's writer too.
    """
    names = sorted(path.name for path in (data_dir / FOLDER).iterdir())
    info = json.loads((data_dir / FOLDER / "dataset_info.json").read_text())
    for split in info["splits"]:
        del split["numBytes"]  # TFDS counts what surrounds an image too
    del info["moduleName"]  # the module of a test, if a builder of a test has written
    return names, info, stock(data_dir, "train"), stock(data_dir, "validation")


def test_stock_tfds_reads_it(tmp_path, official, jpegs, capsys):
    assert command(tmp_path, official) == 0
    assert capsys.readouterr().out == f"imagenet2012 is complete in {tmp_path / FOLDER}\n"
    for split in ("train", "validation"):
        assert set(stock(tmp_path, split)) == set(jpegs[split])
    info = stock_source(tmp_path, "train").dataset_info
    assert info.features["label"].names == list(imagenet_labels.read_labels().of_synset)
    assert (str(info.version), info.splits.total_num_examples) == ("5.1.0", 60)
    assert sorted(path.name for path in (tmp_path / "imagenet2012").iterdir()) == [".lock", "5.1.0"]
    # And again: all is there.
    assert command(tmp_path, "not needed") == 0
    assert capsys.readouterr().out == f"imagenet2012 is complete in {tmp_path / FOLDER}\n"


def test_records_are_those_that_tfds_writes(tmp_path, official, jpegs, several_files):
    """TFDS's own writer is the oracle; it needs no TensorFlow for so few images."""

    class Builder(tfds.builder_cls("imagenet2012"), skip_registration=True):
        name = "imagenet2012"

        def _split_generators(self, dl_manager):
            return {split: self._examples(images) for split, images in jpegs.items()}

        def _examples(self, images):
            for x in images:
                image = io.BytesIO(x.content)
                yield x.name, {"image": image, "label": x.label, "file_name": x.name}

    with contextlib.redirect_stdout(None):
        Builder(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    assert command(tmp_path / "ours", official) == 0
    theirs, ours = everything(tmp_path / "tfds"), everything(tmp_path / "ours")
    assert ours == theirs
    assert len(ours[0]) == 2 * NUM_FILES + 3
    lengths = [split["shardLengths"] for split in ours[1]["splits"]]
    assert lengths == [["10"] * NUM_FILES, ["5"] * NUM_FILES]


def test_both_forms_give_the_same(tmp_path, official, jpegs, several_files):
    small.write_webdataset(tmp_path / "tars", **jpegs)
    assert command(tmp_path / "one", official) == 0
    assert command(tmp_path / "two", tmp_path / "tars") == 0
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_tars_that_lie_in_the_data_folder_are_taken(tmp_path, jpegs):
    small.prepare_small(tmp_path, train=40, validation=20)
    assert set(stock(tmp_path, "train")) == set(jpegs["train"])


KILLED = """
import os, signal, sys
from experiments.data import imagenet_shards, prepare
from tensorflow_datasets.core.hashing import Hasher  # noqa: E402
from tensorflow_datasets.core.utils.shard_utils import ShardConfig

ShardConfig.calculate_number_shards = lambda *args: 4
left, read_image = int(sys.argv[1]), imagenet_shards._read_image

def at(index, place):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(index, place)

imagenet_shards._read_image = at
prepare.main(["imagenet2012", f"--data_dir={sys.argv[2]}", f"--from={sys.argv[3]}", "--subset"])
"""


def kill(data_dir, copy, after):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(after), data_dir, copy],
        cwd=REPOSITORY,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def unfinished(data_dir):
    folder = data_dir / "imagenet2012" / ".prepare" / FOLDER
    return {path.name: path.stat().st_ino for path in folder.glob("imagenet2012-*")}


@pytest.mark.processes
def test_killed_and_started_again(tmp_path, official, several_files):
    command(tmp_path / "whole", official)
    data_dir = tmp_path / "data"
    kill(data_dir, official, after=25)  # in the third file of ten images
    with pytest.raises(NotImplementedError):  # TFDS takes the missing folder for tfrecord
        stock_source(data_dir, "train")
    assert not (data_dir / FOLDER).exists()
    written = unfinished(data_dir)
    assert list(sorted(written)) == [
        f"imagenet2012-train.array_record-0000{n}-of-00004" for n in (0, 1)
    ]
    kill(data_dir, official, after=25)  # 20 of train, all five of a file, then in the next
    more = unfinished(data_dir)
    assert len(more) == 5 and written.items() <= more.items()  # files were kept, not written anew
    assert command(data_dir, official) == 0
    assert everything(data_dir) == everything(tmp_path / "whole")
    inodes = {path.name: path.stat().st_ino for path in (data_dir / FOLDER).iterdir()}
    assert more.items() <= inodes.items()
    assert not (data_dir / "imagenet2012" / ".prepare").exists()


def interrupted(data_dir, copy, monkeypatch, after):
    """Runs the command up to an error of reading."""
    read, left = imagenet_shards._read_image, iter(range(after))

    def failing(index, place):
        if next(left, None) is None:
            raise OSError("tape torn")
        return read(index, place)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet_shards, "_read_image", failing)
        assert command(data_dir, copy) == 2


@pytest.mark.parametrize("other", ["fewer images", "a tar that was fetched again"])
def test_what_is_left_of_other_tars_is_not_used(
    tmp_path, jpegs, several_files, monkeypatch, capsys, other
):
    data_dir, tars = tmp_path / "data", small.write_official(tmp_path / "tars", **jpegs)
    interrupted(data_dir, tars, monkeypatch, after=25)
    assert capsys.readouterr().err.endswith("prepare.py: tape torn\n")
    assert len(unfinished(data_dir)) == 2
    if other == "fewer images":
        jpegs = {split: images[:8] for split, images in jpegs.items()}
    else:  # of the same sizes, with other bytes
        change = lambda x: x._replace(content=x.content[:-3] + b"\0" + x.content[-2:])
        jpegs = jpegs | {"train": [change(x) for x in jpegs["train"]]}
    small.write_official(tars, **jpegs)
    assert command(data_dir, tars) == 0
    assert set(stock(data_dir, "train")) == set(jpegs["train"])


def test_a_tar_that_becomes_shorter(tmp_path, official, jpegs):
    small.write_official(tmp_path, **jpegs)
    indices = imagenet_tars.read_copy(tmp_path, subset=True)
    os.truncate(tmp_path / "ILSVRC2012_img_val.tar", 3000)
    (tmp_path / "work").mkdir()
    with pytest.raises(ValueError, match=r"img_val.tar has changed: it ends in ILSVRC2012_val_\d+"):
        imagenet_shards.write(indices, tmp_path / "work")


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more(tmp_path, official, capsys):
    with files_of_at_most(100_000):
        assert command(tmp_path, official) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"prepare.py: {tmp_path}/imagenet2012/.prepare/imagenet2012/5.1.0 cannot"
    )
    assert not (tmp_path / FOLDER).exists()
    assert command(tmp_path, official) == 0


def test_too_little_space_is_said_before(tmp_path, official, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert command(tmp_path, official) == 2
    assert "has 0.0 GB of free space, expected 0.0 GB" in capsys.readouterr().err
    assert unfinished(tmp_path) == {}


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: os.truncate(path, 70_000)])
def test_a_file_that_is_damaged_is_named_and_written_again(tmp_path, official, spoil, capsys):
    command(tmp_path, official)
    whole = everything(tmp_path)
    (path,) = (tmp_path / FOLDER).glob("*train*")
    spoil(path)
    with pytest.raises(ValueError, match=f"^{path} cannot be read: .*; run again: python exp"):
        imagenet_shards.check(tmp_path)
    assert command(tmp_path, official) == 0
    assert "preparing again, as a file is damaged" in capsys.readouterr().out
    assert everything(tmp_path) == whole


def test_wrong_input_leaves_nothing(tmp_path, official, jpegs, capsys):
    small.write_official(tmp_path / "tars", **jpegs)
    path = tmp_path / "tars" / "ILSVRC2012_img_train.tar"
    os.truncate(path, path.stat().st_size // 2)
    assert command(tmp_path / "data", tmp_path / "tars") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"prepare.py: {path}")
    assert [path.name for path in (tmp_path / "data" / "imagenet2012").iterdir()] == [".lock"]


def test_only_imagenet_has_subsets(tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.main(["cifar10", f"--data_dir={tmp_path}", "--subset"])
    assert "--subset is for imagenet2012, not for cifar10" in capsys.readouterr().err


def test_stock_order_is_that_of_tfds():
    names = np.array([f"n01440764_{n}.JPEG".encode() for n in range(200)])
    hasher = Hasher("train")
    keys = [hasher.hash_key(name) for name in names]
    expected = sorted(range(200), key=keys.__getitem__)
    np.testing.assert_array_equal(imagenet_shards.stock_order("train", names), expected)


def test_small_images_are_the_same_whenever_they_are_made():
    assert small.images("train", 5) == small.images("train", 12)[:5]
