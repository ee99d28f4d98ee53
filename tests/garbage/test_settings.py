"""The garbage classifier: settings from a file and from options; Kaggle's photos."""

import argparse
import dataclasses
import json
from pathlib import Path

import kagglehub
import pytest
import requests

from garbage import InputError, arguments
from garbage.data import download
from garbage.settings import SAMPLE_RECIPE, Settings, read_settings
from train_example import main


def settings_of(*options) -> Settings:
    parser = argparse.ArgumentParser()
    arguments.add_data(parser, "none")
    arguments.add_settings(parser, "settings")
    return arguments.settings_from(parser.parse_args([str(option) for option in options]), Path("out"))


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    (tmp_path / "recipe.toml").write_text('epochs = 7\nlr = 1\ntrain_sizes = ["1:96", "4:128"]\nbalance = "sampler"\n')
    got = settings_of("--data", "photos", "--config", tmp_path / "recipe.toml", "--epochs", 9, "--no-channels-last")
    wanted = Settings(
        data=str(Path("photos").absolute()), epochs=9, lr=1, train_sizes=("1:96", "4:128"), balance="sampler",
        channels_last=False,
    )  # fmt: skip
    assert got == wanted
    assert [got.train_size(epoch) for epoch in (1, 3, 4, 9)] == [96, 96, 128, 128]


def test_every_setting_survives_json_and_has_an_option(tmp_path):
    changed = {"workers": 3, "lr": 0.3, "weight_decay": 0.1, "clip_grad": 2.0, "patience": 5, "freeze": "backbone"}
    settings = Settings(data=None, unfreeze=("2:layer4", "3:all"), **changed)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(settings) | {"data": "photos"}))
    assert settings_of("--config", tmp_path / "config.json") == dataclasses.replace(settings, data=settings_of(
        "--data", "photos").data)  # fmt: skip
    options = ["--unfreeze", "2:layer4", "3:all"]
    for name, value in changed.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    recipe = read_settings(SAMPLE_RECIPE)
    assert settings_of(*options) == dataclasses.replace(settings, **recipe)


def test_the_config_of_a_run_gives_its_settings(run):
    config = json.loads((run / "config.json").read_text())
    assert config.pop("environment")["processes"] == 1
    settings = settings_of("--config", run / "config.json")
    assert json.loads(json.dumps(dataclasses.asdict(settings))) == config


def test_runs_with_a_longer_warmup_than_was_possible_keep_what_they_had(run, tmp_path):
    """Before it was refused, the config.json of a run of 2 epochs had the default of 2, while the warm-up took 1."""
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"warmup_epochs": 2.0}))
    assert read_settings(tmp_path / "config.json")["warmup_epochs"] == 1
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 2, "warmup_epochs": 2.0}))
    with pytest.raises(InputError, match="warmup_epochs must be at most 1, half of epochs, got 2"):
        Settings(data=None, **read_settings(tmp_path / "config.json"))


def test_rate_and_decay_follow_the_optimiser_and_the_start():
    rates = {
        (optimizer, pretrained): Settings(data=None, optimizer=optimizer, pretrained=pretrained).lr
        for optimizer in ("sgd", "adamw")
        for pretrained in (False, True)
    }
    assert rates == {("sgd", False): 0.05, ("sgd", True): 0.01, ("adamw", False): 1e-3, ("adamw", True): 2e-4}
    assert Settings(data=None, weights="file.pt").lr == 0.01 and Settings(data=None, lr=0.2, pretrained=True).lr == 0.2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "epoch = 3", "there is no setting 'epoch'; the nearest is epochs"),
        ("a.toml", "epochs = ", "cannot be read: TOMLDecodeError"),
        ("a.json", '{"epochs": "many"}', "epochs must be int, got 'many'"),
        ("a.json", '{"lr": true}', "lr must be float or nothing, got True"),
        ("a.toml", 'train_sizes = "1:96"', "train_sizes must be a list of texts"),
        ("a.toml", 'schedule = "linear"', "schedule must be one of cosine, step, got 'linear'"),
        ("a.toml", "min_lr = 1.5", "min_lr must be at most 1"),
        ("a.toml", 'schedule = "step"\nmin_lr = 0.1', "min_lr is of the schedule cosine, but schedule is step"),
        ("a.toml", "step_factor = 0.5", "step_factor is of the schedule step, but schedule is cosine"),
        ("a.toml", "data = 5", "data must be a text or nothing, got 5"),
        ("a.toml", "weights = 5", "weights must be a text or nothing, got 5"),
        ("a.json", "[]", r"a\.json cannot be read: it must hold names with values, got \[\]"),
        ("a.json", "null", r"a\.json cannot be read: it must hold names with values, got null"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        settings_of("--config", tmp_path / name)


@pytest.mark.parametrize("recipe", sorted(SAMPLE_RECIPE.parent.iterdir()), ids=lambda path: path.name)
def test_recipes_are_valid(recipe):
    assert Settings(data=None, **read_settings(recipe)).epochs >= 1


def test_download_finds_the_class_folders(tmp_path, monkeypatch):
    photos = tmp_path / "cache" / "garbage_classification"
    (photos / "metal").mkdir(parents=True)
    (photos / "paper").mkdir()
    asked = []
    monkeypatch.setattr(kagglehub, "dataset_download", lambda name: asked.append(name) or str(tmp_path / "cache"))
    assert settings_of("--download").data == str(photos)
    assert asked == ["mostafaabla/garbage-classification"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (requests.ConnectionError("no route to host"), r"cannot be downloaded \(ConnectionError: no route to host\)"),
        (
            requests.HTTPError("403 Forbidden", response=argparse.Namespace(status_code=403)),
            "Kaggle asks for an account",
        ),
    ],
)
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, capsys, error, message):
    def fail(name):
        raise error

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    with pytest.raises(InputError, match=message):
        download.download()
    for command in ("train", "inspect"):
        assert main([command, "--download", "--out", str(tmp_path / "out")]) == 2
        assert "give the folder that has the class folders to --data" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(["train", "--download"]) == 2
    assert "--out is needed with --data or --download" in capsys.readouterr().err
