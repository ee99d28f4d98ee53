"""The garbage classifier: export."""

import json
import sys

import pytest
import torch
from garbage_runs import files_below
from PIL import Image

from garbage.data.folders import decode, normalise
from garbage.run.folder import load_run
from garbage.use import export
from train_example import main

onnx = pytest.importorskip("onnx", reason="pip install '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
pytest.importorskip("onnxscript", reason="pip install '.[export]'")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "new"
    before = files_below(run)
    assert main(["export", "--run", str(run), "--out", str(out)]) == 0
    assert files_below(run) == before and {p.name for p in out.iterdir()} == {"model.pt2", "model.onnx"}
    return out


@pytest.fixture(scope="module")
def batches(drawn):
    """Five random images, and a preprocessed photo."""
    photo = decode(drawn / "val" / "metal" / "0000.png", 32)
    return [torch.randn(5, 3, 32, 32), torch.randn(1, 3, 32, 32), normalise(photo[None]).contiguous()]


def test_onnx_computes_the_logits_of_any_batch(run, exported, batches):
    network, _ = load_run(run)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    for x in batches:
        (logits,) = session.run(["logits"], {"image": x.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(logits), network(x), atol=1e-4, rtol=1e-4)


def test_pt2_computes_the_logits_of_any_batch(run, exported, batches):
    network, _ = load_run(run)
    program = torch.export.load(exported / "model.pt2")
    for x in batches:
        with torch.inference_mode():
            torch.testing.assert_close(program.module()(x), network(x), atol=1e-4, rtol=1e-4)


def test_operators_are_those_of_every_runtime(exported):
    model = onnx.load(exported / "model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", export.OPSET)]
    program = torch.export.load(exported / "model.pt2")
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name.partition(".")[0] for name in operators} <= {"aten", "<built-in function getitem>"}


def test_labels_and_preprocessing_are_inside(run, exported):
    _, checkpoint = load_run(run)
    files = {export.METADATA: ""}
    torch.export.load(exported / "model.pt2", extra_files=files)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    for found in (metadata, json.loads(files[export.METADATA])):
        assert json.loads(found["classes"]) == checkpoint["classes"]
        preprocessing = json.loads(found["preprocessing"])
        assert preprocessing["mean"] == [0.485, 0.456, 0.406] and preprocessing["std"] == [0.229, 0.224, 0.225]
        assert "32 x 32" in preprocessing["resize"] and preprocessing["channels"] == "RGB"
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert image.name == "image" and image.shape[1:] == [3, 32, 32] and isinstance(image.shape[0], str)
    assert logits.name == "logits" and logits.shape[1] == 12


def test_what_differs_is_not_kept(run, tmp_path, monkeypatch, capsys):
    class Wrong(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) @ torch.ones(3, 12)

    def wrong_reference(path, backend="fused", load=export.load_run):
        network, checkpoint = load(path, backend)
        return (Wrong() if backend == "reference" else network), checkpoint

    monkeypatch.setattr(export, "load_run", wrong_reference)
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out")]) == 1
    assert "model.pt2 computes something else than the network on random input" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_input_is_refused(run, tmp_path, monkeypatch, capsys):
    broken, out = tmp_path / "broken.png", tmp_path / "out"
    broken.write_bytes(b"")
    command = ["export", "--run", str(run), "--out", str(out)]
    assert main([*command, "--photo", str(broken)]) == 2
    assert "broken.png cannot be read: UnidentifiedImageError" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(command) == 2
    assert "pip install '.[export]'" in capsys.readouterr().err
    assert not out.exists()


def test_the_check_says_which_photo_it_took(run, drawn, tmp_path, capsys):
    """With a given photo; a checkpoint file has none."""
    photo = tmp_path / "photo.webp"
    Image.open(drawn / "val" / "paper" / "0000.png").save(photo)
    (tmp_path / "alone.pt").write_bytes((run / "best.pt").read_bytes())
    assert main(["export", "--run", str(tmp_path / "alone.pt"), "--photo", str(photo)]) == 0
    assert f"model.onnx on {photo}: largest difference" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").exists() and (tmp_path / "model.pt2").exists()
