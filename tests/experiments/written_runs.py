"""Folders and result files of finished runs, written without training."""

import json

CONFIG = {
    "model": "lenet5",
    "schedule": "rigl",
    "sparsity": 0.9,
    "steps": 100,
    "seed": 0,
    "out": None,
    "data_dir": None,
    "plan": False,
    "update_interval": None,
}


def config_and_summary(accuracy=0.5, *, dataset="sample", ratios=(0.2, 0.1), **flags):
    summary = {
        "dataset": dataset,
        "test_accuracy": accuracy,
        "val_accuracy": None,
        "train_flops_ratio": ratios[0],
        "test_flops_ratio": ratios[1],
        "alarms": [],
        "device": "cpu",
        "jax": "0.10.2",
    }
    return CONFIG | flags, summary


def write_run(path, accuracy=0.5, **options):
    config, summary = config_and_summary(accuracy, **options)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config | {"out": str(path)}))
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def write_result(path, accuracy=0.5, **options):
    config, summary = config_and_summary(accuracy, **options)
    for name in ("out", "data_dir", "plan"):  # as a sweep keeps them
        del config[name]
    machine = {"cpu": "Some CPU", "cores": 2}
    content = {"config": config, "summary": summary, "commit": "abc1234+", "machine": machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
