"""The garbage classifier: a run stopped anywhere resumes to the same bits."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from garbage_runs import files_below, read_log
from tiny_training import TINY, load, same, train, train_folder

from garbage import InputError, Interrupted
from garbage.run import folder as run_folder
from garbage.train import loop
from train_example import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(drawn):
    return load(drawn)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(images, out)
    return out


def assert_same_run(out, expected):
    for name in ("last.pt", "best.pt"):
        mine, theirs = (torch.load(folder / name, weights_only=True) for folder in (out, expected))
        assert same(mine, theirs), name
    for record, other in zip(read_log(out), read_log(expected), strict=True):
        assert same(record, other)
    name = "val_predictions.json"
    assert json.loads((out / name).read_text()) == json.loads((expected / name).read_text())
    assert {p.name for p in out.iterdir()} == {p.name for p in expected.iterdir()}, "something was left behind"


class Killed(BaseException):
    """Simulates the end of the process."""


def test_a_kill_before_any_file_is_replaced_loses_nothing(images, tmp_path, monkeypatch):
    """Killed before the 1st, 2nd, ... replacement, each in a new run, which then resumes."""
    replace, remaining = os.replace, -1

    def replace_or_die(source, target):
        nonlocal remaining
        if remaining == 0:
            remaining = -1
            # A real kill leaves half of the temporary file, under the name of another process.
            with open(source, "rb") as file, open(f"{target.parent}/.{target.name}.1", "wb") as half:
                half.write(file.read(100))
            raise Killed
        remaining -= 1
        replace(source, target)

    train(images, tmp_path / "undisturbed", epochs=2)
    monkeypatch.setattr(run_folder.os, "replace", replace_or_die)
    for kills in itertools.count():
        remaining, out = kills, tmp_path / str(kills)
        try:
            train(images, out, epochs=2)
            break
        except Killed:
            train(images, out, go_on=True, epochs=2)
        assert_same_run(out, tmp_path / "undisturbed")
    assert kills >= 2 + 4 + 2, "classes, config; last, log, predictions, best; last, log and perhaps a better epoch"


@pytest.mark.parametrize("kill_at", [0, 4, 5, 8])
def test_an_interrupt_saves_the_step_and_the_rest_is_as_undisturbed(
    images, undisturbed, tmp_path, monkeypatch, kill_at
):
    """In the first step; in the second epoch, with averaged weights; at the end of an epoch; in the last step."""
    out, seed_all, steps = tmp_path / "run", loop.seed_all, 0
    handler = signal.getsignal(signal.SIGINT)

    def press(*place):
        nonlocal steps
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGINT if kill_at else signal.SIGTERM)
        steps += 1
        seed_all(*place)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_all", press)
        with pytest.raises(Interrupted, match=f"resume with: python train_example.py train --resume {out}"):
            train(images, out)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = torch.load(out / "last.pt", weights_only=True)["resume"]["progress"]
    assert saved["epoch"] * 3 + saved["step"] == kill_at + 1
    train(images, out, go_on=True)
    assert_same_run(out, undisturbed)


def test_killed_at_random_moments(drawn, undisturbed, tmp_path):
    """kill -9 of resuming runs at random times; CBAM_FUSED_KILLS is the total number of kills."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    wanted, rng, out = int(os.environ.get("CBAM_FUSED_KILLS", 2)), random.Random(), tmp_path / "run"

    def start(out):
        process = context.Process(target=train_folder, args=(drawn, out, (out / "config.json").exists()))
        process.start()
        return process

    start(tmp_path / "first").join()  # which waits for the imports of the server
    began, process = time.perf_counter(), start(tmp_path / "timing")
    process.join()
    duration = time.perf_counter() - began
    kills, of_this_run = 0, 0
    while kills < wanted or not of_this_run:
        process = start(out)
        process.join(rng.uniform(0.1, 0.9) * duration)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills, of_this_run = kills + 1, of_this_run + 1
        else:  # the run finished first
            assert process.exitcode == 0
            assert_same_run(out, undisturbed)
            shutil.rmtree(out)
            of_this_run = 0
    process = start(out)
    process.join()
    assert process.exitcode == 0
    assert_same_run(out, undisturbed)


def test_a_finished_run_is_not_trained_further_and_says_how(images, undisturbed, capsys):
    before = files_below(undisturbed)
    best = train(images, undisturbed, go_on=True)
    output = " ".join(capsys.readouterr().out.split())
    assert "is finished after 3 of 3 epochs (all): nothing is trained." in output
    assert (
        f"start a new run from its weights: python train_example.py train --weights {undisturbed / 'last.pt'} "
        in output
    )
    assert best == torch.load(undisturbed / "best.pt", weights_only=True)["metrics"]
    after = files_below(undisturbed)
    assert {k: v for k, v in after.items() if k in before} == before


def test_the_weights_to_start_from_are_needed_only_at_the_start(images, undisturbed, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes((undisturbed / "best.pt").read_bytes())
    changes = {"weights": str(weights), "epochs": 1}
    best = train(images, tmp_path / "run", **changes)
    assert best["train_loss"] != read_log(undisturbed)[0]["train_loss"]
    weights.unlink()
    assert train(images, tmp_path / "run", go_on=True, **changes) == best
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(InputError, match=r"weights\.pt holds no weights"):
        train(images, tmp_path / "run", go_on=True, **changes)


def test_what_cannot_be_resumed_is_refused_with_the_differences(images, drawn, two_classes, undisturbed, tmp_path):
    before = files_below(undisturbed)
    with pytest.raises(InputError, match="arch is squeezenet1_1, the checkpoint has mobilenet_v2; cbam is none, the"):
        train(images, undisturbed, go_on=True, arch="squeezenet1_1", cbam="none")
    (two_classes / "shoes").rename(two_classes / "boots")
    with pytest.raises(InputError, match=r": classes that are new: boots; classes that are missing: battery, biol"):
        train(load(two_classes), undisturbed, go_on=True)
    (two_classes / "boots").rename(two_classes / "shoes")
    with pytest.raises(InputError, match=r": classes that are missing: battery, biol"):
        train(load(two_classes), undisturbed, go_on=True)
    fewer = load(drawn)
    fewer.val.paths.reverse()
    with pytest.raises(InputError, match="images are not those that the run began with"):
        train(fewer, undisturbed, go_on=True)
    assert files_below(undisturbed) == before
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "last.pt").write_bytes((undisturbed / "last.pt").read_bytes()[:9999])
    with pytest.raises(InputError, match=r"last\.pt is not a checkpoint to resume from"):
        train(images, damaged, go_on=True)


def test_a_run_goes_on_where_its_images_are_now(run, drawn, tmp_path):
    out, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(run, out)
    moved.symlink_to(drawn)
    before = json.loads((out / "config.json").read_text())
    assert main(["train", "--resume", str(out), "--data", str(moved), "--workers", "1"]) == 0
    after = json.loads((out / "config.json").read_text())
    assert after == before | {"data": str(moved), "workers": 1}


def test_options_that_contradict_the_run_are_refused(run, drawn, tmp_path, capsys):
    before = files_below(run)
    resume = ["train", "--resume", str(run)]
    assert main([*resume, "--lr", "0.3", "--batch-size", "8", "--amp", "bf16"]) == 2
    error = capsys.readouterr().err
    assert "lr is 0.3, in the run 0.05; amp is bf16, in the run none" in error and "batch_size" not in error
    assert main([*resume, "--epochs", "9"]) == 2
    error = capsys.readouterr().err
    assert "epochs is 9, in the run 2. To train its network further, or with other settings, start a new run" in error
    assert f"--weights {run / 'last.pt'}" in error
    assert main([*resume, "--out", str(tmp_path / "other")]) == 2
    assert "exclude each other" in capsys.readouterr().err
    for folder in (tmp_path, tmp_path / "mistyped", run / "last.pt"):
        assert main(["train", "--resume", str(folder)]) == 2
        assert f"{folder} is not the folder of a run that has begun: it has no config" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"data": null, "epochs": "many"}')
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "does not hold the settings of a run: epochs must be int, got 'many'" in capsys.readouterr().err
    assert files_below(run) == before


def test_two_processes_do_not_train_in_one_folder(images, tmp_path):
    with run_folder.locked(tmp_path), pytest.raises(InputError, match="another process is training in"):
        train(images, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_anything_is_written(images, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 50_000_000})
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="MB, but its disk has only 50 MB free"):
        train(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_later_leaves_the_last_state(images, undisturbed, tmp_path, monkeypatch):
    out, save, calls = tmp_path / "run", torch.save, 0

    def save_or_fail(content, file):
        nonlocal calls
        calls += 1
        if calls == 4:
            with open("/dev/full", "wb", buffering=0) as full:
                save(content, full)
        save(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_or_fail)
        with pytest.raises(OSError, match="No space left"):
            train(images, out)
    train(images, out, go_on=True)
    assert_same_run(out, undisturbed)


def test_tiny_covers_what_has_state():
    assert TINY.ema and TINY.mixup and TINY.cutmix and TINY.erasing and TINY.augment != "none" and TINY.clip_grad
