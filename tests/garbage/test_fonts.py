"""The garbage classifier: class names in any script, drawn with installed fonts."""

import json
import shutil
import warnings

import matplotlib
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from garbage_runs import SMALL, synthetic_run
from matplotlib import font_manager
from PIL import Image

from garbage.report import fonts
from train_example import main

CHINESE, THAI, HINDI = "\u7535\u6c60", "\u0e41\u0e01\u0e49\u0e27", "\u0915\u093e\u0917\u091c"


def make_font(path, family: str, characters: str):
    """A TrueType font whose characters are all the same black square."""
    names = [".notdef", *(f"u{ord(c):04X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): name for c, name in zip(characters, names[1:], strict=True)})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf({name: square for name in names})
    builder.setupHorizontalMetrics({name: (900, 0) for name in names})
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def as_before():
    """Only matplotlib's fonts, without those of other tests."""
    known, family = list(font_manager.fontManager.ttflist), list(matplotlib.rcParams["font.family"])
    shipped = [entry for entry in known if "mpl-data" in entry.fname]
    font_manager.fontManager.ttflist[:] = shipped
    yield
    font_manager.fontManager.ttflist[:] = known
    matplotlib.rcParams["font.family"] = family


@pytest.fixture
def installed(monkeypatch):
    """Fonts installed after matplotlib built its list."""
    paths = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **kwargs: list(map(str, paths)))
    return paths


@pytest.fixture
def foreign_run(run, tmp_path, installed):
    """A finished run with three class names in other scripts."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    names = {"battery": CHINESE, "metal": THAI, "paper": HINDI}
    for file in ("best.pt", "last.pt"):
        checkpoint = torch.load(out / file, weights_only=True)
        checkpoint["classes"] = [names.get(name, name) for name in checkpoint["classes"]]
        torch.save(checkpoint, out / file)
    content = json.loads((out / "val_predictions.json").read_text())
    content["classes"] = [names.get(name, name) for name in content["classes"]]
    (out / "val_predictions.json").write_text(json.dumps(content))
    return out


def commands(run, pictures, out) -> list[list[str]]:
    tables = ["--csv", str(out / "p.csv"), "--json", str(out / "p.json")]
    return [
        ["report", "--run", str(run)],
        ["explain", "--run", str(run), "--out", str(out / "maps"), str(pictures)],
        ["predict", "--run", str(run), *tables, "--annotate", str(out / "copies"), str(pictures)],
    ]


def test_installed_fonts_are_chosen_by_script(foreign_run, installed, drawn, tmp_path, capsys):
    installed.append(make_font(tmp_path / "han.ttf", "Test Han", CHINESE))
    installed.append(make_font(tmp_path / "south.ttf", "Test South", THAI + HINDI))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        for command in commands(foreign_run, drawn / "val" / "metal", tmp_path):
            assert main(command) == 0
    assert {"Test Han", "Test South"} <= set(matplotlib.rcParams["font.family"])
    assert "no installed font" not in capsys.readouterr().out
    page = (foreign_run / "report.html").read_text()
    assert all(name in page for name in (CHINESE, THAI, HINDI))


def test_without_fonts_one_line_says_what_to_install(foreign_run, drawn, tmp_path, capfd):
    for command in commands(foreign_run, drawn / "val" / "metal", tmp_path):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Glyph")
            assert main(command) == 0
        captured = capfd.readouterr()
        (line,) = [line for line in captured.out.splitlines() if "no installed font has" in line]
        assert f"say 'class 0' for '{CHINESE}' and 2 more" in line
        assert "a font with Chinese, Japanese and Korean, Devanagari, Thai (" in line
        assert "apt install fonts-noto-cjk fonts-noto-core" in line
        assert "Glyph" not in captured.err + captured.out
    assert CHINESE in (foreign_run / "report.html").read_text()  # the reader's browser has other fonts


def test_inspect_of_names_that_no_font_has(two_classes, tmp_path, installed, capsys):
    (two_classes / "paper").rename(two_classes / CHINESE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        assert main(["inspect", "--data", str(two_classes), "--out", str(tmp_path / "out")]) == 0
    assert f"'class 1' for '{CHINESE}'; install" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "class_indices.json").read_text())["1"] == CHINESE


def test_training_with_such_names_warns_once(two_classes, tmp_path, installed, capsys):
    (two_classes / "paper").rename(two_classes / CHINESE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        assert main(["train", "--data", str(two_classes), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert capsys.readouterr().out.count("no installed font has") == 1


def test_symbols_and_rare_scripts_have_their_packages(installed, capsys):
    assert fonts.choose_fonts(["glass", "\U0001faab empty"]) == {"\U0001faab empty": "class 1"}
    assert "install a font with symbols (on Debian and Ubuntu: apt install fonts-symbola)" in capsys.readouterr().out
    assert fonts.choose_fonts(["\u0b95\u0bbe", "glass"]) == {"\u0b95\u0bbe": "class 0"}
    assert "a font with Tamil (on Debian and Ubuntu: apt install fonts-noto-core)" in capsys.readouterr().out


def test_names_of_known_scripts_need_nothing(installed, capsys):
    names = ["caf\u00e9", "\u043c\u0435\u0442\u0430\u043b\u043b", "\u03b3\u03c5\u03b1\u03bb\u03af", "tab\tand\u200dzwj"]
    assert fonts.choose_fonts(names) == {} and capsys.readouterr().out == ""
    assert matplotlib.rcParams["font.family"] == list(fonts.BASE)


def test_the_fewest_families_are_chosen_and_fonts_of_boxes_never(installed, tmp_path):
    installed.append(make_font(tmp_path / "a.ttf", "Aa Part", CHINESE[0]))
    installed.append(make_font(tmp_path / "z.ttf", "Zz Whole", CHINESE))
    installed.append(make_font(tmp_path / "l.ttf", "Last Resort", THAI))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed.append(tmp_path / "broken.ttf")
    assert fonts.choose_fonts(["glass", CHINESE, THAI]) == {THAI: "class 2"}
    assert matplotlib.rcParams["font.family"] == [*fonts.BASE, "Zz Whole"]


def test_a_line_of_two_scripts_is_written_in_pieces(installed, tmp_path):
    path = make_font(tmp_path / "han.ttf", "Test Han", CHINESE)
    installed.append(path)
    assert fonts.choose_fonts([f"old {CHINESE} ok"]) == {}
    pieces = fonts.runs_of_one_font(f"old {CHINESE} ok")
    assert [piece for piece, _, _ in pieces] == ["old ", f"{CHINESE} ", "ok"] and pieces[1][1] == str(path)
    assert "DejaVu" in pieces[0][1]


def test_plots_show_the_number_instead_of_a_box(tmp_path, installed):
    """The picture equals that of a class with the replacement name."""
    pictures = []
    for name in (CHINESE, "class 3"):
        folder = tmp_path / f"{len(name)}"
        folder.mkdir()
        run = synthetic_run(folder)
        content = json.loads((run / "val_predictions.json").read_text())
        content["classes"][3] = name
        (run / "val_predictions.json").write_text(json.dumps(content))
        assert main(["report", "--run", str(run)]) == 0
        pictures.append(Image.open(run / "confusion_matrix.png").tobytes())
    assert pictures[0] == pictures[1]
