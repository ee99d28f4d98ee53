"""The optional choice of tiles by measurement, with times that are made up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from truth import assert_close_to_truth, random_problem

from cbam_fused.triton import autotune, launch, tiles

CALL = launch.Call(4, 64, 4, 56, 56, 7, False, torch.float32, 32)
X = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)


@pytest.fixture
def measured(monkeypatch):
    """Runs that were timed. Time is the number of pixels of the tiles, so that the least are the fastest."""
    runs = []

    def time(run, return_mode):
        run()
        return sum(tile.pixels for _, tile in runs[-1].tuned)

    monkeypatch.setenv("CBAM_FUSED_AUTOTUNE", "1")
    monkeypatch.setattr(autotune, "do_bench", time)
    monkeypatch.setattr(autotune, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return runs


def test_the_fastest_is_chosen_once_for_a_shape(measured):
    call = autotune.tuned("forward", CALL, X, measured.append)
    for reduces in ("pixels", "channels", "none"):
        options = tiles.candidates(reduces, *CALL.shape_class)
        assert len(options) > 2 and call.tile(reduces).pixels == min(t.pixels for t in options)
    count = len(measured)
    assert autotune.tuned("forward", CALL, X, measured.append) == call and len(measured) == count
    autotune.tuned("backward", CALL, X, measured.append)
    autotune.tuned("forward", replace(CALL, C=128), X, measured.append)
    assert len(measured) > 2 * count


def test_never_while_a_graph_is_captured(measured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert autotune.tuned("forward", CALL, X, measured.append) == CALL and not measured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    chosen = autotune.tuned("forward", CALL, X, measured.append)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert autotune.tuned("forward", CALL, X, measured.append) == chosen != CALL


def test_not_unless_asked_for(measured, monkeypatch):
    monkeypatch.delenv("CBAM_FUSED_AUTOTUNE")
    assert autotune.tuned("forward", CALL, X, measured.append) == CALL and not measured


@pytest.mark.parametrize("place", [1, 2, 3, 4, 5])
def test_every_candidate_computes_the_same(place, checker, monkeypatch):
    def candidate(reduces, *shape_class):
        return (options := tiles.candidates(reduces, *shape_class))[place % len(options)]

    monkeypatch.setattr(launch, "tile", candidate)
    assert_close_to_truth(random_problem((1, 70, 20, 30), torch.float32, biases=True, residual=True, relu=True))
