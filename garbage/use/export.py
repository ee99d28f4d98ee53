"""Exports a network with torch.export and ONNX, with labels and preprocessing in the files.

The exported network has CBAM in plain PyTorch operators (the same state_dict in reference.CBAM), which every runtime
supports; the fused kernels exist only in this package. The exported files are compared with the fused network.
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path

import rich
import torch
from torch import Tensor

from .. import InputError
from ..data.folders import MEAN, STD, normalise, try_decode
from ..report.predictions import read_predictions
from ..run.folder import VAL_PREDICTIONS, check_writable, data_folder, home_of, load_run, replacing

OPSET = 23  # tested with onnxruntime 1.32
TOLERANCE = 1e-3  # for the logits, relative to the largest
METADATA = "metadata.json"  # in a .pt2 file


def export(run: Path, out: Path, photo: Path | None = None) -> None:
    """Write model.pt2 and model.onnx, unless they differ from the network on random input or on a photo.

    Input: float32 (N, 3, S, S), any N, normalised RGB. Output: logits (N, K). The metadata have the rest.

    Args:
        run: a finished run, or a checkpoint file.
        out: folder for the two files.
        photo: an image for the check; default: the first existing validation image of the run.

    Raises:
        InputError: onnx or onnxruntime is missing; an invalid run, folder or photo.
        FloatingPointError: an exported network has other results; neither file is written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise InputError(f"{error}; pip install '.[export]'") from None
    check_writable(out)
    model, checkpoint = load_run(run)
    plain, _ = load_run(run, backend="reference")
    plain = plain.to(memory_format=torch.contiguous_format)
    size = checkpoint["image_size"]
    photo = photo or _validation_image(run)
    inputs = {"random input": torch.randn(3, 3, size, size), "a single random image": torch.randn(1, 3, size, size)}
    if photo:
        view = try_decode(photo, size)
        if isinstance(view, str):
            raise InputError(f"{photo} cannot be read: {view}")
        inputs[str(photo)] = normalise(view[None]).contiguous()
    metadata = describe(checkpoint)

    batch = torch.export.Dim("batch", min=1)
    example = (torch.randn(2, 3, size, size),)
    program = torch.export.export(plain, example, dynamic_shapes=({0: batch},))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    onnx_program = torch.onnx.export(
        program, input_names=["image"], output_names=["logits"], opset_version=OPSET, dynamo=True, verbose=False
    )
    onnx_program.model.metadata_props.update(metadata)

    out.mkdir(parents=True, exist_ok=True)
    console = rich.get_console()
    with ExitStack() as stack:  # both files appear, or none
        pt2, onnx_file = (stack.enter_context(replacing(out / name)) for name in ("model.pt2", "model.onnx"))
        with open(pt2, "wb") as file:
            torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
        onnx_program.save(onnx_file, external_data=False)
        onnx.checker.check_model(onnx_file, full_check=True)
        loaded = _load(pt2)
        session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
        for what, x in inputs.items():
            with torch.inference_mode():
                expected = model(x)
                got = {
                    "model.pt2": loaded(x),
                    "model.onnx": torch.from_numpy(session.run(None, {"image": x.numpy()})[0]),
                }
            for name, logits in got.items():
                error = _difference(logits, expected)
                console.print(f"{name} on {what}: largest difference {error:.1e}", soft_wrap=True, markup=False)
                if not error <= TOLERANCE:
                    raise FloatingPointError(f"{name} computes something else than the network on {what}")
    console.print(f"written to {out}: model.pt2, model.onnx (opset {OPSET})", soft_wrap=True, markup=False)


def describe(checkpoint: dict) -> dict[str, str]:
    """The facts that another program needs to use the network; values are JSON."""
    size = checkpoint["image_size"]
    preprocessing = {
        "channels": "RGB",
        "resize": f"crop the longer side at the centre, resize to {size} x {size} (bicubic)",
        "scale": "1 / 255",
        "mean": MEAN,
        "std": STD,
    }
    values = {key: checkpoint[key] for key in ("classes", "arch", "cbam", "epoch")}
    values |= {"output": "logits; softmax gives probabilities", "preprocessing": preprocessing}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def _load(pt2: Path) -> torch.nn.Module:
    with open(pt2, "rb") as file:  # a path would need the suffix
        return torch.export.load(file).module()


def _difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest logit; infinite for another shape or NaN."""
    if got.shape != expected.shape or not got.isfinite().all():
        return float("inf")
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()  # a new ViT's logits are 0


def _validation_image(run: Path) -> Path | None:
    home = home_of(run)
    folder = data_folder(home)
    if folder is None or not (home / VAL_PREDICTIONS).exists():
        return None
    return next((folder / f for f in read_predictions(home / VAL_PREDICTIONS).files if (folder / f).exists()), None)
