"""Writes docs/guide/api.md from the docstrings: python tools/docs/generate_api.py"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import cbam_fused
from cbam_fused import functional, modules, reference, surgery
from cbam_fused.replace import replace
from cbam_fused.variants import config, table

INTRODUCTION = """# API

Generated from the docstrings by `python tools/docs/generate_api.py`. N images of C channels and H x W pixels; r is the
reduction, R the hidden units of the MLP, k the size of the spatial window. Everything is typed (`py.typed`).

## Environment

- `CBAM_FUSED_BACKEND`, at import: `reference` is plain PyTorch instead of kernels; with `cpu`, `cuda` and `triton` it
  is an error if this backend has no kernels for a tensor's device; `auto` is the default. `use_backend` changes it
  later.
- `CBAM_FUSED_CUDA_SCHEDULE`, at every call of the CUDA kernels: `staged`, or the blocks of a cluster, instead of their
  own choice, `auto` ([cuda.md](../design/cuda.md)).
- `ATEN_CPU_CAPABILITY`, at the first call: the widest instruction set to be used, `default`, `avx2` or `avx512`, as in
  PyTorch itself.
- `TRITON_INTERPRET`: with `1`, and `CBAM_FUSED_BACKEND=triton`, the Triton kernels run on the CPU, slowly.
- `CBAM_FUSED_BUILD_SITE`, by the build: the site-packages with the torch to build against
  ([troubleshooting.md](troubleshooting.md)).
- `CXX`, `CXXFLAGS`, `CUDA_HOME`, `TORCH_CUDA_ARCH_LIST`, `MAX_JOBS`, by the build: the C++ compiler; its flags, which
  ours stand behind; the CUDA toolkit; what GPUs to compile for, such as `8.0;9.0+PTX` or `all`, instead of those that
  are here; compilers at a time.
- `CBAM_FUSED_CUDA`, by the build: `0` leaves the CUDA kernels out, with `1` it is an error that they cannot be built,
  `auto` is the default.
- `CBAM_FUSED_NATIVE`, by the build: with `1` it is for this machine alone, its instruction set and its GPUs.
- `CC`, at import and by Triton: the C compiler that Triton needs on a GPU, instead of gcc or clang.

`python -m cbam_fused info` prints what was built, which backend serves which device, and why.
"""

SECTIONS = {
    "Modules": (cbam_fused.CBAM, cbam_fused.ChannelAttention, cbam_fused.SpatialAttention, modules.Backend),
    "Functions": (
        functional.cbam,
        functional.channel_gate,
        functional.spatial_gate,
        functional.backend_for,
        functional.use_backend,
    ),
    "Other CBAMs": (replace.replace_cbam, replace.Report, cbam_fused.export_state_dict),
    "Finished networks": (
        surgery.insert_cbam,
        surgery.remove_cbam,
        surgery.freeze_except,
        surgery.unfreeze,
        surgery.parameter_table,
        surgery.PartParameters,
        surgery.attention_maps,
        surgery.AttentionMaps,
    ),
    "Plain PyTorch": (
        reference.CBAM,
        reference.ChannelAttention,
        reference.SpatialAttention,
        reference.cbam,
        reference.channel_gate,
        reference.spatial_gate,
    ),
    "Tables": (config.Switches, table.Variant),
}
TABLE = """
### `cbam_fused.VARIANTS`

The table of public implementations, from the name to its `Variant`; [variants.md](variants.md) shows it.
"""
FIELDS = ("Args", "Returns", "Raises", "Attributes", "Shape", "State", "Source")
FIELD = re.compile(rf"^({'|'.join(FIELDS)}):(.*)")
INHERITED = re.compile(rf"^(?:Args|State):.*(?:\n(?!(?:{'|'.join(FIELDS)}):).*)*", re.M)
ITEM = re.compile(r"^    (\w[\w, ]*): (.*)")
ROLE = re.compile(r":\w+:`([\w.]+)`")


def page() -> str:
    parts = [INTRODUCTION]
    for title, members in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        parts += [_entry(member) for member in members]
    return "".join(parts) + TABLE


def _entry(member: Callable) -> str:
    """A class with its methods, or a function."""
    text = f"\n### `{_name(member)}`\n\n" + _code(_signature(member)) + _markdown(member)
    if inspect.isclass(member):
        for name, method in vars(member).items():
            if inspect.isfunction(method) and not name.startswith("_") and method.__doc__:
                text += f"\n#### `{member.__name__}.{name}`\n\n" + _code(_signature(method)) + _markdown(method)
    return text


def _name(member: Callable) -> str:
    """The shortest name under which it is imported."""
    packages = [p.__name__ for p in (cbam_fused, surgery) if getattr(p, member.__name__, None) is member]
    return f"{(packages or [member.__module__])[0]}.{member.__name__}"


def _code(signature: str) -> str:
    return textwrap.indent(signature, "    ") + "\n\n"


def _signature(member: Callable) -> str:
    """As the source has it; inspect.signature writes types differently in every version of Python."""
    node = ast.parse(textwrap.dedent(inspect.getsource(member))).body[0]
    result = ""
    if isinstance(node, ast.ClassDef):
        own = {child.name: child for child in node.body if isinstance(child, ast.FunctionDef)}
        if "__init__" in own:
            parameters = [*_parameters(own["__init__"].args)][1:]
        else:  # a named tuple or a data class
            parameters = [_field(child) for child in node.body if isinstance(child, ast.AnnAssign)]
    else:
        parameters = [p for p in _parameters(node.args) if p != "self"]
        result = f" -> {ast.unparse(node.returns)}"
    line = f"{node.name}({', '.join(parameters)}){result}"
    if len(line) <= 110:
        return line
    return "\n".join([f"{node.name}(", *(f"    {p}," for p in parameters), f"){result}"])


def _parameters(args: ast.arguments) -> Iterator[str]:
    required = len(args.args) - len(args.defaults)
    for arg, default in zip(args.args, [None] * required + args.defaults, strict=True):
        yield _parameter(arg, default)
    if args.vararg:
        yield f"*{ast.unparse(args.vararg)}"
    elif args.kwonlyargs:
        yield "*"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _parameter(arg, default)
    if args.kwarg:
        yield f"**{ast.unparse(args.kwarg)}"


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(arg) + (f" = {ast.unparse(default)}" if default else "")


def _field(node: ast.AnnAssign) -> str:
    made_by_a_call = isinstance(node.value, ast.Call)
    return f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}" if made_by_a_call else ast.unparse(node)


def _docstring(member: Callable) -> str:
    """With the arguments and the state of the base class, where it is documented there."""
    text = inspect.getdoc(member)
    bases = [inspect.getdoc(base) or "" for base in member.__mro__[1:]] if inspect.isclass(member) else []
    documented = [base for base in bases if "\nArgs:" in base]
    if "\nArgs:" in text or not documented:
        return text
    return "\n".join([text, *INHERITED.findall(documented[0])])


def _markdown(member: Callable) -> str:
    """The docstring, its fields as bold words and their items as lists."""
    lines = []
    for line in ROLE.sub(r"`\1`", _docstring(member)).replace("``", "`").splitlines():
        if field := FIELD.match(line):
            lines += ["", f"**{field[1]}**{':' if field[2] else ''}{field[2]}"]
            lines += [""] * (not field[2])
        elif item := ITEM.match(line):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append("  " + line.strip() if line.startswith("     ") else line.strip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs/guide/api.md").write_text(page())
