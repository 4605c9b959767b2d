import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.data import imagenet
from experiments.data.imagenet_records import open_records
from tests.experiments import stored_images as stored

NUM_TRAIN, NUM_VALIDATION = 23, 11
GREY, CMYK, TRUNCATED = 3, 5, 8  # labels of odd training images
TRUNCATED_VALIDATION = 4
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Images of two sizes; in each split one is cut in half."""
    sizes = [(60, 80), (96, 50)]
    train = [stored.encoded(stored.pixels(n, *sizes[n % 2])) for n in range(NUM_TRAIN)]
    train[GREY] = stored.encoded(stored.pixels(GREY), "L")
    train[CMYK] = stored.encoded(stored.pixels(CMYK), "CMYK")
    train[TRUNCATED] = train[TRUNCATED][: len(train[TRUNCATED]) // 2]
    validation = [stored.encoded(stored.pixels(100 + n)) for n in range(NUM_VALIDATION)]
    half = len(validation[TRUNCATED_VALIDATION]) // 2
    validation[TRUNCATED_VALIDATION] = validation[TRUNCATED_VALIDATION][:half]
    folder = tmp_path_factory.mktemp("data")
    stored.write(folder, {"train": train, "validation": validation})
    return folder


def opened(data_dir, **options):
    defaults = {"seed": 5, "batch_size": 8, "image_size": 16, "workers": 0, "max_corrupt": 9}
    return imagenet.open_data(data_dir, **({"process": (0, 1)} | defaults | options))


def steps(data, first, number):
    """The batches of some steps after `first` completed ones."""
    batches = data.train(first)
    found = [next(batches) for _ in range(number)]
    batches.close()
    return found


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected, strict=True)


@pytest.fixture(scope="module")
def batches(data_dir):
    """The first seven batches of 8 images: three epochs of two, and one of the fourth."""
    return steps(opened(data_dir), 0, 7)


def test_shapes_and_numbers(data_dir, batches):
    data = opened(data_dir)
    assert (data.name, data.num_train, data.num_evaluation) == ("imagenet2012", 23, 11)
    for images, labels in batches:
        assert (images.dtype, images.shape) == (np.uint8, (8, 16, 16, 3))
        assert (labels.dtype, labels.shape) == (np.int32, (8,))


def test_an_epoch_is_a_permutation_without_its_tail(data_dir, batches):
    # The truncated image is replaced by its neighbour, which may then come twice.
    neighbour = neighbour_of(data_dir, TRUNCATED)
    epochs = [np.concatenate([batches[n][1], batches[n + 1][1]]) for n in (0, 2, 4)]
    for labels in epochs:
        values, counts = np.unique(labels, return_counts=True)
        assert TRUNCATED not in values
        assert set(values[counts > 1]) <= {neighbour}
    assert len({tuple(labels) for labels in epochs}) == 3


def neighbour_of(data_dir, label):
    """The label of the record behind the one with a label."""
    labels = [one.label for one in open_records(data_dir)["train"].read(range(NUM_TRAIN))]
    return labels[(labels.index(label) + 1) % NUM_TRAIN]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_out_the_same_batches(data_dir, batches, count):
    parts = [steps(opened(data_dir, process=(index, count)), 0, 7) for index in range(count)]
    joined = [
        tuple(np.concatenate([part[step][k] for part in parts]) for k in (0, 1))
        for step in range(7)
    ]
    assert_same(joined, batches)


@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_run_goes_on_with_the_batches_it_would_have_seen(data_dir, batches, done):
    assert_same(steps(opened(data_dir), done, 7 - done), batches[done:])


def test_seed_and_step_change_the_batch(data_dir, batches):
    others = steps(opened(data_dir, seed=6), 0, 2)
    assert not np.array_equal(others[0][1], batches[0][1])
    # The same image in two epochs: other crops.
    for images, labels in batches[2:6]:
        for row in np.flatnonzero(labels == batches[0][1][0]):
            assert not np.array_equal(images[row], batches[0][0][0])


def test_large_batches_come_in_chunks_and_are_joined(data_dir, batches, monkeypatch):
    monkeypatch.setattr(imagenet.decoding, "MOST", 3)
    assert_same(steps(opened(data_dir), 0, 7), batches)


def test_crops_show_the_image_of_their_label(data_dir, batches):
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            if label in (GREY, CMYK):
                continue
            whole = stored.pixels(label, *((60, 80) if label % 2 == 0 else (96, 50)))
            low, high = whole.min((0, 1)).astype(int), whole.max((0, 1)).astype(int)
            assert (image >= low - 25).all() and (image <= high + 25).all()


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 2), (12, 4), (8, 8)])
def test_evaluation_counts_every_image_once(data_dir, batch_size, count):
    passes = [
        list(opened(data_dir, batch_size=batch_size, process=(index, count)).evaluation())
        for index in range(count)
    ]
    shapes = {tuple((x.shape, x.dtype.name) for x in batch) for one in passes for batch in one}
    local = batch_size // count
    assert shapes == {(((local, 16, 16, 3), "uint8"), ((local,), "int32"), ((local,), "float32"))}
    assert {len(one) for one in passes} == {-(-NUM_VALIDATION // batch_size)}
    every = [
        label
        for one in passes
        for _, labels, weights in one
        for label in labels[weights == 1].tolist()
    ]
    expected = set(range(NUM_VALIDATION)) - {TRUNCATED_VALIDATION}
    assert sorted(every) == sorted(expected)
    weights = np.concatenate([batch[2] for one in passes for batch in one])
    assert set(weights.tolist()) <= {0.0, 1.0}
    assert weights.sum() == NUM_VALIDATION - 1


def test_corrupt_images_are_named_and_counted_once(data_dir, capsys):
    data = opened(data_dir)
    steps(data, 0, 6)
    list(data.evaluation())
    list(data.evaluation())
    assert len(data.tally) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"warning: skipping a corrupt image: train_{TRUNCATED}.JPEG (record")
    assert f"validation_{TRUNCATED_VALIDATION}.JPEG (record" in lines[1]
    assert "truncated" in lines[0]


def test_more_corrupt_images_than_allowed_end_the_run(data_dir):
    data = opened(data_dir, max_corrupt=1)
    steps(data, 0, 6)
    with pytest.raises(ValueError, match=r"2 images cannot be read, more than --max_corrupt=1 .*"):
        list(data.evaluation())


def test_a_damaged_record_is_named_by_its_file(data_dir, batches, tmp_path, capsys):
    copy = shutil.copytree(data_dir, tmp_path / "data")
    (path,) = (copy / "imagenet2012/5.1.0").glob("*-train.array_record-*")
    content = path.read_bytes()
    path.write_bytes(content[:20_000] + bytes(40) + content[20_040:])
    found = open_records(copy)["train"].read(range(NUM_TRAIN))
    damaged = [one for one in found if not hasattr(one, "data")]
    assert [one.name for one in damaged] == [str(path)]
    assert "hash mismatch" in damaged[0].reason
    labels = [one.label for one in open_records(data_dir)["train"].read(range(NUM_TRAIN))]
    for (images, found), (expected, before) in zip(steps(opened(copy), 0, 7), batches, strict=True):
        same = (before != labels[damaged[0].record]) & (before == found)
        np.testing.assert_array_equal(images[same], expected[same])
        assert (same.sum(), labels[damaged[0].record] in found) in ((8, False), (7, False))
    assert str(path) in capsys.readouterr().err


def test_a_split_of_nothing_but_damage_ends_the_run(tmp_path):
    bad = [b"no image"] * 8
    stored.write(tmp_path, {"train": bad, "validation": bad})
    with pytest.raises(ValueError, match="images of a batch cannot be read"):
        next(opened(tmp_path).train(0))


def test_where_the_data_is_expected(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        opened(tmp_path)
    assert str(error.value) == (
        f"imagenet2012 expected in {tmp_path}/imagenet2012/5.1.0; get it with: "
        f"python experiments/data/prepare.py imagenet2012 --data_dir={tmp_path} --from=FOLDER"
    )
    with pytest.raises(FileNotFoundError, match=f"pass --data_dir={data_dir}"):
        opened(data_dir / "imagenet2012")
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        opened(Path(__file__))


def test_a_file_of_records_is_missing(data_dir, tmp_path):
    copy = shutil.copytree(data_dir, tmp_path / "data")
    (path,) = (copy / "imagenet2012/5.1.0").glob("*-validation.array_record-*")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing .1 of 1 files.; run again:"):
        opened(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"batch_size": 24}, r"batch_size 24 must be a whole number in \[1, 23\]"),
        ({"batch_size": 9, "process": (0, 2)}, "batch_size 9 must be a multiple of 2 processes"),
        ({"seed": -1}, "seed -1"),
        ({"image_size": 0}, "image_size 0"),
        ({"workers": -1}, "workers -1"),
        ({"max_corrupt": -1}, "max_corrupt -1"),
    ],
)
def test_options_out_of_range(data_dir, options, message):
    with pytest.raises(ValueError, match=message):
        opened(data_dir, **options)


@pytest.mark.processes
def test_workers_make_the_same_batches(data_dir, batches, capsys):
    data = opened(data_dir, workers=2)
    assert_same(steps(data, 0, 7), batches)
    assert len(data.tally) == 1
    assert f"train_{TRUNCATED}.JPEG" in capsys.readouterr().err


SCRIPT = """
import multiprocessing, os, pathlib, sys
from experiments.data import imagenet
if __name__ == "__main__":
    data = imagenet.open_data(pathlib.Path(sys.argv[1]), seed=5, batch_size=8, image_size=16,
                              workers=1, max_corrupt=9, process=(0, 1))
    batches = data.train(0)
    for number, _ in enumerate(batches):
        if number == 0:
            print(multiprocessing.active_children()[0].pid, flush=True)
            sys.stdin.readline()
        if number == 20:
            print("20 more", flush=True)
"""


@pytest.mark.processes
def test_workers_outlive_signals_and_end_with_their_parent(data_dir, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, script, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        text=True,
    )
    worker = int(parent.stdout.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker, number)
    print("go on", file=parent.stdin, flush=True)
    assert parent.stdout.readline() == "20 more\n"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.stdin.close()
    parent.stdout.close()


def is_running(process):
    """Whether a process is there, and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
