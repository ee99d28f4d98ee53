"""The documentation: examples run, links resolve, generated tables are current."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
from public import PUBLIC

import cbam_fused
from cbam_fused import CBAM, VARIANTS, surgery
from garbage.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# <!-- not run: REASON --> in the line above skips a block.
BLOCK = re.compile(r"^(<!-- not run: \S.* -->\n)?```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)")
CLASSIFIER = re.compile(r"^    (?:(?:python|torchrun .*) train_example\.py|\.\.\.)(.*)", re.M)
FILE = re.compile(r"`((?:tests|docs|csrc|bench|garbage|cbam_fused|tools)/[\w./]+\.\w+)`")
READ = re.compile(r"""(?:getenv|environ\.get|environ\.setdefault)\(["'](\w+)""")
BY_US_ALONE = {"CBAM_FUSED_SANITIZE"}  # for make sanitize

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda page: page.name)
def test_examples_run(page, tmp_path, monkeypatch):
    """The blocks of a page in order, in one namespace and a temporary folder."""
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), {"__name__": "example"}
    torch.manual_seed(0)
    for block in BLOCK.finditer(text):
        if block[1] is None:
            above = text.count("\n", 0, block.start(2))  # so that a traceback has the line of the page
            exec(compile("\n" * above + block[2], str(page), "exec"), names)


@pages
def test_every_python_block_is_seen(page):
    assert len(BLOCK.findall(page.read_text())) == page.read_text().count("```py")


@pages
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if not re.match(r"https?:|mailto:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_named_files_exist(page):
    assert [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_commands_of_the_classifier_are_ones_that_it_takes():
    parser = build_parser()
    lines = [line.partition(" #")[0] for page in PAGES for line in CLASSIFIER.findall(page.read_text())]
    assert len(lines) > 10
    for line in lines:
        arguments = shlex.split(line)
        if not arguments or arguments[0].startswith("-"):  # "..." and the example without anything are train
            arguments.insert(0, "train")
        assert parser.parse_args(arguments).run_command, line


@pages
def test_targets_of_make_exist(page):
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:^    |`)make ([\w-]+)", page.read_text(), re.M)) <= set(targets)


def test_every_public_name_has_an_entry():
    page = (DOCS / "guide" / "api.md").read_text()
    entries = set(
        re.findall(r"^\.\. auto(?:class|function):: cbam_fused\.([\w.]+)|^### `cbam_fused\.(\w+)`", page, re.M)
    )
    functions = {f"functional.{n}" for n in ("cbam", "channel_gate", "spatial_gate")} | {"routing.backend_for"}
    public = {*cbam_fused.__all__} - {"functional", "reference"} | {*surgery.__all__}
    assert (public | functions) - {(a or b).removeprefix("surgery.") for a, b in entries} == set()


def test_every_environment_variable_has_an_entry():
    sources = [p for folder in ("cbam_fused", "_build", "csrc") for p in (ROOT / folder).rglob("*.*")]
    sources.append(ROOT / "setup.py")
    sources = [p for p in sources if p.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")]
    read = {name for p in sources for name in READ.findall(p.read_text())}
    section = (DOCS / "guide" / "environment.md").read_text()
    listed = {name for line in section.splitlines() if line.startswith("- ") for name in re.findall(r"`(\w+)`", line)}
    assert read and read - listed <= BY_US_ALONE


def test_each_layer_imports_only_those_below_it():
    section = (DOCS / "design" / "architecture.md").read_text().partition("## Layers")[2].partition("\n## ")[0]
    names = re.findall(r"^    (?!csrc)(\w+/|[\w/]+\.py) ", section, re.M)
    layers = [ROOT / "cbam_fused" / name for name in names]
    assert len(layers) > 12 and all(layer.exists() for layer in layers)

    def level(path: Path) -> int | None:
        return next((i for i, layer in enumerate(layers) if layer == path or layer in path.parents), None)

    for above, layer in enumerate(layers):
        for source in layer.glob("*.py") if layer.is_dir() else [layer]:
            below = [level(path) for path in imported_modules(source)]
            assert all(i >= above for i in below if i is not None), source


def imported_modules(source: Path) -> list[Path]:
    """The package's files imported at the top of a file."""
    found = []
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = source.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found += [folder.with_suffix(".py")] if node.module else []
            found += [folder / f"{name.name}.py" for name in node.names] + [folder / "__init__.py"]
    return [path for path in found if path.is_file()]


ROWS = re.findall(
    r"^\| .* \| (`.*`).* \| `(CBAM\(C.*\))` \| .*\|$", (DOCS / "guide" / "migration.md").read_text(), re.M
)


def test_the_migration_has_every_variant_once():
    found = [re.sub(r'CBAM\(C(, variant="(\w+)")?\)', r"\2", call) or "tutorial" for _, call in ROWS]
    assert sorted(found) == sorted(VARIANTS)


@pytest.mark.parametrize("keys,call", ROWS, ids=[call for _, call in ROWS])
def test_the_migration_of_a_variant(keys, call):
    """The call loads the state of the public module, which has these keys, and computes the same."""
    ours = eval(call, {"CBAM": CBAM, "C": 64}).double().eval()
    public = PUBLIC[ours.variant](64, VARIANTS[ours.variant].reduction).double().eval()
    state = public.state_dict()
    assert {key for key in re.findall(r"`([\w.]+)`", keys)} <= state.keys()
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, 64, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), public(x))
    notes = re.search(rf"{re.escape(call)}` \| (.*)\|", (DOCS / "guide" / "migration.md").read_text())[1]
    assert ("plain PyTorch" in notes) >= (ours.backend_for(x).name == "reference")
