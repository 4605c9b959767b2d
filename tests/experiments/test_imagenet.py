"""The ImageNet script from its flags to its folder, on real JPEGs that the test has prepared."""

import json
import math

import pytest

from experiments import imagenet
from experiments.mesh import layout
from experiments.options import cli
from experiments.records import metrics
from tests.experiments import tiny_imagenet
from tests.experiments.mesh.runs import outcome
from tests.experiments.small_imagenet import prepare_small
from tests.experiments.tiny_imagenet import SHORT, TINY

FLAGS = "--schedule=granet_st --sparsity=0.9 --update_interval=4 --stop_step=8 --checkpoint_every=5"
FLAGS += " --eval_every=10 --steps=20"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_small(tmp_path_factory.mktemp("imagenet"), train=120, validation=30)


def config_of(flags):
    return cli.parse(imagenet.Config, [*SHORT.split(), *flags.split()])


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(imagenet.MODELS, "tiny", TINY)


@pytest.mark.slow
def test_a_run_on_real_images(data_dir, tmp_path, capsys):
    """On eight devices; a corrupt image is named, and all 30 validation images count once."""
    out = tmp_path / "run"
    argv = [*SHORT.split(), *FLAGS.split(), f"--data_dir={data_dir}", f"--out={out}", "--fsdp"]
    assert tiny_imagenet.main(argv) == 0
    printed, complaints = capsys.readouterr()
    for line in (
        "accuracy ",
        "active weights",
        "training FLOPs",
        "speed ",
        f"folder          {out}",
    ):
        assert line in printed
    assert "images a second" in printed
    assert "corrupt" in complaints
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_devices"] == 8
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert (summary["val_accuracy"] * 30) % 1 == pytest.approx(0, abs=1e-6)
    assert {p.name for p in out.iterdir()} >= {"plot.png", "metrics.jsonl", "config.json"}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "churn" in r] == [4, 8, 12, 16]
    # The same command again says that it is done.
    assert tiny_imagenet.main(argv) == 2
    assert "holds a finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loss_that_diverges_leaves_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    record = metrics.loss_record
    diverging = lambda run, step, loss: record(run, step, loss if step < 8 else math.nan)
    monkeypatch.setattr(metrics, "loss_record", diverging)
    out = tmp_path / "run"
    assert tiny_imagenet.main([*SHORT.split(), *FLAGS.split(), "--fake_data", f"--out={out}"]) == 2
    assert "error: the training loss at step 8 is nan" in capsys.readouterr().err
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"5"}
    assert not (out / "summary.json").exists()


class Cut(Exception):
    pass


@pytest.mark.variants
@pytest.mark.slow
@pytest.mark.long
def test_east_on_eight_devices_ends_without_dyrelu_and_resumes(tmp_path, monkeypatch):
    flags = "--fake_data --fsdp --schedule=east --sparsity=0.8 --cycle_interval=1 --steps=12"
    argv = [*SHORT.split(), *flags.split(), "--update_interval=4", "--checkpoint_every=4"]
    assert tiny_imagenet.main([*argv, f"--out={tmp_path / 'whole'}"]) == 0
    record = imagenet.record

    def cut(run, data, shown, step, *args):
        if step == 9:  # DyReLU ends after 6, a checkpoint follows 8
            raise Cut
        return record(run, data, shown, step, *args)

    monkeypatch.setattr(imagenet, "record", cut)
    with pytest.raises(Cut):
        tiny_imagenet.main([*argv, "--eval_every=9", f"--out={tmp_path / 'cut'}"])
    monkeypatch.undo()
    monkeypatch.setitem(imagenet.MODELS, "tiny", TINY)
    assert tiny_imagenet.main([*argv, "--eval_every=9", f"--out={tmp_path / 'cut'}"]) == 0
    summaries = [outcome(tmp_path / name)[0] for name in ("whole", "cut")]
    assert summaries[0]["resolved"]["dyrelu_stop_step"] == 6
    for name in ("num_active", "layers", "val_accuracy", "train_flops"):
        assert summaries[0][name] == summaries[1][name]
    saved = [load_saved(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    assert saved[0] == saved[1]
    assert not any("dyrelu" in path for path in saved[0])


def load_saved(folder):
    """The checksums of the leaves in the last checkpoint, by path."""
    (path,) = folder.glob("12/contents/metadata")
    return json.loads(path.read_text())["records"]


@pytest.mark.slow
def test_a_dry_run_prints_plan_memory_and_time(capsys):
    assert tiny_imagenet.main([*SHORT.split(), *FLAGS.split(), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "devices         8 x cpu",
        "state ",
        "step ",
        "mask update ",
        "training        20",
    ):
        assert line in printed
    assert "FLOPs" in printed


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--batch_size=12", "--batch_size=12 cannot be cut evenly over 8 devices; take 8 or 16"),
        ("--batch_size=16 --accumulate=4", "in 4 micro-batches each; take 32"),
        ("--image_size=0", "--image_size=0 must be a whole number, at least 1"),
        ("--workers=-1", "--workers=-1 must be a whole number, at least 0"),
        ("--norms=device", "--norms=device needs --exchange=explicit"),
        ("--norms=local", "--norms=local must be global or device"),
        ("--exchange=none", "--exchange=none must be automatic or explicit"),
        ("--steps=5 --epochs=1", "--steps=5 and --epochs=1.0: pass one of them"),
        ("--recipe=granett", "unknown recipe 'granett'; did you mean 'granet'?"),
        ("--model=resnet51", "unknown model 'resnet51'; did you mean 'resnet50'?"),
        ("--schedule=granet_ts", "unknown schedule 'granet_ts'; did you mean 'granet_st'?"),
    ],
)
def test_wrong_flags(flags, complaint):
    with pytest.raises(ValueError) as error:
        imagenet.run_of(config_of(f"--fake_data {flags}"), layout.make_mesh())
    assert complaint in str(error.value)


def test_a_missing_data_set_is_one_line(tmp_path, capsys):
    assert tiny_imagenet.main([*SHORT.split(), f"--data_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "prepare.py imagenet2012" in line


@pytest.mark.parametrize("schedule", ["dense", "static", "gmp", "set", "rigl", "snfs", "east"])
def test_every_method_has_its_published_recipe(schedule):
    flags = f"--fake_data --model=resnet50 --schedule={schedule} --batch_size=1024 --image_size=224"
    config = cli.parse(imagenet.Config, flags.split())
    recipe, by_rigl = (
        imagenet.recipe_of(config),
        schedule in ("static", "set", "rigl", "snfs", "gmp"),
    )
    assert recipe.learning_rate == pytest.approx(0.4 if by_rigl else 0.8)
    method = imagenet.method_of(config, 125_100)
    events = [event.step for event in method.timetable.events]
    last = {"gmp": 25 / 32, "set": 25 / 32, "rigl": 25 / 32, "snfs": 25 / 32}.get(schedule)
    if last is not None:
        assert events[-1] == pytest.approx(last * 125_100, rel=0.03)
    assert bool(events) == (schedule not in ("dense", "static"))
