"""Image files of all kinds: each is decoded as displayed, or reported with the reason."""

import json
import struct

import numpy as np
import pytest
from PIL import Image

from garbage.data.pixels import read_rgb
from train_example import main

RED, BLUE = (200, 30, 40), (20, 60, 210)


@pytest.fixture
def picture() -> Image.Image:
    """Left half red, right half blue, 48 x 32."""
    pixels = np.empty((32, 48, 3), np.uint8)
    pixels[:, :24], pixels[:, 24:] = RED, BLUE
    return Image.fromarray(pixels)


def halves(image: Image.Image) -> list[tuple[float, ...]]:
    """The mean colours of the left and the right half, away from the seam."""
    assert image.mode == "RGB"
    pixels, middle = np.asarray(image, float), image.width // 2
    return [tuple(part.mean((0, 1))) for part in (pixels[:, : middle - 4], pixels[:, middle + 4 :])]


@pytest.mark.parametrize(
    ("name", "convert", "options"),
    [
        ("plain.png", None, {}),
        ("plain.jpg", None, {"quality": 95}),
        ("plain.webp", None, {"lossless": True}),
        ("plain.bmp", None, {}),
        ("plain.tif", None, {}),
        ("cmyk.jpg", "CMYK", {"quality": 95}),
        ("cmyk.tif", "CMYK", {}),
        ("palette.png", "P", {}),
        ("palette.gif", "P", {}),
        ("opaque.png", "RGBA", {}),
        ("wrong_suffix.jpg", None, {"format": "PNG"}),
    ],
)
def test_colours_survive(picture, tmp_path, name, convert, options):
    (picture.convert(convert) if convert else picture).save(tmp_path / name, **options)
    for got, expected in zip(halves(read_rgb(tmp_path / name, 8)), (RED, BLUE), strict=True):
        assert got == pytest.approx(expected, abs=12)


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg", "grey16.png", "grey16.tif", "bilevel.png"])
def test_grey_is_grey(tmp_path, name):
    ramp = np.tile(np.linspace(10, 245, 64), (16, 1))
    if "16" in name:
        image = Image.fromarray((ramp * 256).astype(np.uint16))
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert("1" if "bilevel" in name else "L")
    image.save(tmp_path / name)
    got = np.asarray(read_rgb(tmp_path / name, 16), float)
    assert np.ptp(got, axis=2).max() == 0
    if "bilevel" not in name:
        assert np.abs(got[..., 0] - ramp).max() < 4
    assert got[:, :8].mean() < 60 and got[:, -8:].mean() > 195


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "grey_alpha.png", "palette.png", "palette.gif"])
def test_what_is_transparent_is_white(picture, tmp_path, name):
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, 24, 32))
    image = picture.convert("L" if "grey" in name else "RGB")
    image.putalpha(alpha)
    if name == "palette.png":  # for a GIF Pillow makes the palette itself
        image = image.quantize(8, Image.Quantize.FASTOCTREE)
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    left, right = halves(read_rgb(tmp_path / name, 8))
    assert left == pytest.approx((255, 255, 255), abs=2) and max(right) < 225


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_camera_that_was_turned(picture, tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 8  # stored rotated clockwise by 90 degrees: left becomes bottom
    picture.save(tmp_path / f"turned.{kind}", exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    image = read_rgb(tmp_path / f"turned.{kind}", 32)
    assert image.size == (32, 48)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    for got, expected in zip(halves(upright), (RED, BLUE), strict=True):
        assert got == pytest.approx(expected, abs=40)


@pytest.mark.parametrize("kind", ["gif", "webp", "apng"])
def test_of_an_animation_the_first_frame(picture, tmp_path, kind):
    frames = [Image.new("RGB", picture.size, "white")] * 2
    picture.save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames, duration=100)
    for got, expected in zip(halves(read_rgb(tmp_path / f"moving.{kind}", 8)), (RED, BLUE), strict=True):
        assert got == pytest.approx(expected, abs=25)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as pixels.py asks; pytest forgets it
def test_a_large_photo_is_decoded_small(tmp_path):
    Image.new("RGB", (12000, 9000), RED).save(tmp_path / "large.jpg")  # 108 megapixels, beyond Pillow's warning
    image = read_rgb(tmp_path / "large.jpg", 200)
    assert image.size == (1500, 1125)


def test_predict_names_what_it_cannot_read(run, picture, tmp_path, capsys, recwarn):
    roll = tmp_path / "roll"
    roll.mkdir()
    picture.save(roll / "good.gif")
    picture.save(roll / "whole.png")
    whole = (roll / "whole.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(roll / "cut.jpg")
    (roll / "cut.jpg").write_bytes((roll / "cut.jpg").read_bytes()[:3000])
    (roll / "cut.png").write_bytes(whole[: len(whole) // 2])
    (roll / "empty.png").write_bytes(b"")
    (roll / "phone.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(12))
    Image.new("1", (15000, 15000)).save(roll / "bomb.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(roll / "depth.tif")
    (roll / "notes.txt").write_text("no image")
    (roll / "folder.jpg").mkdir()
    out = {name: str(tmp_path / f"p.{name}") for name in ("csv", "json")}
    assert main(["predict", "--run", str(run), "--csv", out["csv"], "--json", out["json"], str(roll)]) == 0
    content = json.loads((tmp_path / "p.json").read_text())
    assert [i["path"] for i in content["images"]] == [str(roll / "good.gif"), str(roll / "whole.png")]
    reasons = {s["path"].rpartition("/")[2]: s["reason"] for s in content["skipped"]}
    expected = {
        "cut.jpg": "truncated",
        "cut.png": "",
        "empty.png": "cannot identify image file",
        "phone.heic": "cannot identify image file",
        "bomb.png": "DecompressionBombError: Image size (225000000 pixels) exceeds limit",
        "depth.tif": "32-bit pixels (mode F) have no known range",
    }
    assert reasons.keys() == expected.keys() and all(expected[name] in reasons[name] for name in expected), reasons
    output = capsys.readouterr().out
    assert all(f"skipped {roll / name}: {reason}" in output for name, reason in reasons.items())
    assert "passed over files that are no images: 1 .txt" in output and "skipped 6;" in output
    assert not recwarn.list
