import dataclasses
import json
import re

import pytest

from experiments import cifar, fashion_mnist
from experiments.options import cli, flags


@pytest.mark.parametrize("config", [fashion_mnist.Config, cifar.Config])
def test_own_flags_come_first_in_help_and_in_config(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    names = [field.name for field in dataclasses.fields(config)]
    bases = (flags.Running, flags.Tricks, flags.Pruning)
    shared = [f.name for base in bases for f in dataclasses.fields(base)]
    assert names[0] == "model"
    assert names[-len(shared) :] == shared
    assert list(cli.as_dict(config())) == names
    with pytest.raises(SystemExit):
        cli.parse(config, ["--help"])
    assert re.findall(r"^(?:│ |  )--(\w+)", capsys.readouterr().out, re.M) == names


def test_the_order_is_all_that_changes():
    config = cifar.Config(model="vgg16", min_keep=3)
    assert (config.model, config.min_keep, config.eval_every) == ("vgg16", 3, 100)
    assert dataclasses.replace(config, min_keep=None) == cifar.Config(model="vgg16")
    assert json.loads(json.dumps(cli.as_dict(config), default=str))["min_keep"] == 3


def test_the_options_of_methods_are_picked_out():
    found = flags.pruning_options(fashion_mnist.Config(scope="layer", steps=7))
    assert found["scope"] == "layer"
    assert set(found) == {field.name for field in dataclasses.fields(flags.Pruning)}
