"""Parts of a report with photos: confident mistakes and attention maps."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import torch
from torch import Tensor, nn

import cbam_fused
from cbam_fused.surgery import AttentionMaps

from ..data.folders import normalise, try_decode
from ..data.pixels import read_rgb
from .heat import MAPS, as_picture, has_cbam, overlay, spread
from .page import figure, jpeg_uri
from .predictions import Predictions

MISTAKES, SAMPLES = 24, 6
THUMBNAIL = 240  # pixels of the longer side


def mistakes(predictions: Predictions, locate: Callable[[str], Path]) -> str:
    """HTML of the most confident wrong predictions with their photos; locate finds a file of the predictions."""
    indices = predictions.mistakes(MISTAKES)
    if not indices:
        return "<p>There are none: every image was classified correctly.</p>\n"
    wrong = int((predictions.predicted != predictions.labels).sum())
    figures, missing = "", 0
    for i in indices:
        path = locate(predictions.files[i])
        try:
            photo = read_rgb(path, THUMBNAIL)
        except Exception:  # moved or damaged since; Pillow may raise anything for a damaged file
            missing += 1
            continue
        photo.thumbnail((THUMBNAIL, THUMBNAIL))
        true, said = (predictions.classes[int(labels[i])] for labels in (predictions.labels, predictions.predicted))
        caption = (
            f'<b class="wrong">{escape(said)}</b> {predictions.confidences[i]:.0%}, '
            f"is <b>{escape(true)}</b><br>{escape(predictions.files[i])}"
        )
        figures += figure(jpeg_uri(photo), f"{true}, classified as {said}: {path.name}", caption, "photo")
    if not figures:
        return f"<p>Left out: none of the photos is there any more, {escape(str(path))} for one.</p>\n"
    note = f" ({missing} more cannot be read any more)" if missing else ""
    return (
        f"<p>{len(indices) - missing} of {wrong} wrong predictions{note}, the most confident first. Photos that are "
        f'labelled wrongly tend to be among the first.</p>\n<div class="grid photos">\n{figures}</div>\n'
    )


def attention(model: nn.Module, image_size: int, predictions: Predictions, locate: Callable[[str], Path]) -> str:
    """HTML of CBAM's gates for one photo each of a few classes: spatial gates as overlays, channel gates as bars."""
    if not has_cbam(model):
        return "<p>Left out: the network has no CBAM.</p>\n"
    first = {label: i for i, label in reversed(list(enumerate(predictions.labels.tolist())))}
    names = {predictions.classes[label]: predictions.files[i] for label, i in sorted(first.items())}
    chosen = spread(list(names), SAMPLES)
    seen = {name: try_decode(locate(names[name]), image_size) for name in chosen}
    images = {name: view for name, view in seen.items() if isinstance(view, Tensor)}
    if not images:
        return f"<p>Left out: none of the photos can be read, {escape(str(locate(names[chosen[0]])))} for one.</p>\n"
    maps = cbam_fused.attention_maps(model, normalise(torch.stack(list(images.values()))))
    shown = spread(list(maps), MAPS)
    of_all = f" Of its {len(maps)} CBAMs {len(shown)} are shown." if len(shown) < len(maps) else ""
    body = (
        "<p>Photos as the network sees them. Colours: the spatial gate of each CBAM, from blue (lowest) to red "
        "(highest value in this photo). Bars: its channel gates from 0 to 1, one bar a channel; the dashed line is "
        f"at 0.5, where a gate stands that has learned nothing.{of_all}</p>\n{_faults(maps)}"
    )
    for n, (name, image) in enumerate(images.items()):
        body += f'<h3>{escape(name)}</h3>\n<div class="grid maps">\n'
        body += figure(jpeg_uri(as_picture(image)), f"{name}: {names[name]}", escape(names[name]), "photo")
        for module in shown:
            channel, spatial = maps[module]
            heat, gates = spatial[n, 0], channel[n].flatten()
            caption = f"<b>{escape(module)}</b> {heat.min():.2f} to {heat.max():.2f}{gate_bars(gates)}"
            alt = f"spatial gate of {module} over the photo of {name}"
            body += figure(jpeg_uri(overlay(image, heat)), alt, caption, "photo")
        body += "</div>\n"
    return body


def _faults(maps: dict[str, AttentionMaps]) -> str:
    """The problems of each CBAM's gates over these photos."""
    faults = [(name, text) for name, gates in maps.items() for text in gates.problems]
    if not faults:
        return f"<p>No gate of its {len(maps)} CBAMs is constant or saturated over these photos.</p>\n"
    items = "".join(f"<li><b>{escape(name)}</b> {escape(text)}</li>\n" for name, text in faults)
    return f"<p>Gates that do not do their work:</p>\n<ul>\n{items}</ul>\n"


def gate_bars(gates: Tensor) -> str:
    """Channel gates (C,) in [0, 1] as an inline SVG, one bar a channel."""
    bars = "".join(f"V{1 - gate:.3f}h1" for gate in gates.tolist())
    low, high, count = gates.min(), gates.max(), len(gates)
    return (
        f'<svg class="gates" viewBox="0 0 {count} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{count} channel gates from {low:.2f} to {high:.2f}">'
        f'<path d="M0 1{bars}V1z"/><line x1="0" x2="{count}" y1=".5" y2=".5"/></svg>'
        f"{count} channels, {low:.2f} to {high:.2f}"
    )
