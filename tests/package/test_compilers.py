"""The build's compiler calls: with any user flags, from any folder, and without repetition."""

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import build_kernels
import compiler
import flags
import ninja_file
import nvcc
import pytest

ROOT = Path(__file__).parents[2]

# Compilers known to work; `make test-all` installs the older ones.
COMPILERS = [name for name in ("g++", "g++-11", "clang++", "clang++-14", "clang++-16") if shutil.which(name)]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
MATH = ["__FAST_MATH__", "__FINITE_MATH_ONLY__", "__ASSOCIATIVE_MATH__", "__RECIPROCAL_MATH__", "__NO_SIGNED_ZEROS__"]
USERS = [
    "-ffast-math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math",
    "-ffinite-math-only",
    "-freciprocal-math",
    "-march=native",
    "-mavx2",
    "-mavx512f -mavx512bw",
    "-O0 -g",
]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its instruction sets")
def test_the_binding_runs_on_every_processor(monkeypatch):
    """It detects the processor's features before any kernel runs."""
    monkeypatch.setenv("CXXFLAGS", "-march=native -mavx2")
    defined = macros(build_kernels.Kernels().binding())
    assert not [name for name in defined if name.startswith("__AVX")]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its instruction sets")
@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("isa", flags.X86_64)
def test_compilers_take_the_kernels(name, isa, monkeypatch):
    monkeypatch.setenv("CXX", name)
    command = compiler.find().compile([*flags.KERNELS, *flags.X86_64[isa], "-Werror", "-fsyntax-only"])
    result = subprocess.run([*command, *flags.sources(isa)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:3000]


def macros(command: list[str]) -> dict[str, str]:
    command = [*command, "-dM", "-E", "-x", "c++", os.devnull]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(" ", 2)[1:] for line in lines if line.count(" ") >= 2)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its instruction sets")
@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("isa", flags.X86_64)
def test_flags_of_the_user_change_neither_arithmetic_nor_instruction_set(name, user, isa, monkeypatch):
    monkeypatch.setenv("CXX", name)
    monkeypatch.delenv("CXXFLAGS", raising=False)
    ours = [*flags.KERNELS, *flags.X86_64[isa]]
    plain = macros(compiler.find().compile(ours))
    assert [plain.get(macro, "0") for macro in MATH] == ["0"] * len(MATH)
    monkeypatch.setenv("CXXFLAGS", user)
    got = macros(compiler.find().compile(ours))
    different = {name for name in plain.keys() | got.keys() if plain.get(name) != got.get(name)}
    assert not {name for name in different if name in MATH or name.startswith(("__AVX", "__F16C", "__FMA"))}


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("user", [user for user in USERS if not user.startswith("-m")])
def test_a_library_leaves_the_processor_as_it_was(name, user, tmp_path, monkeypatch):
    """A library linked with -ffast-math would flush denormals to zero in the whole process."""
    monkeypatch.setenv("CXX", name)
    monkeypatch.setenv("CXXFLAGS", user)
    found = compiler.find()
    (tmp_path / "empty.cpp").touch()
    subprocess.run([*found.compile([]), "-c", tmp_path / "empty.cpp", "-o", tmp_path / "empty.o"], check=True)
    subprocess.run([*found.link([]), tmp_path / "empty.o", "-o", tmp_path / "empty.so"], check=True)
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(5e-324 * float(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(tmp_path / "empty.so"), "1"]
    assert subprocess.check_output(command, text=True).strip() == "5e-324"


def test_fast_math_for_nvcc_is_dropped(monkeypatch):
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-use_fast_math --threads=2")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "--use_fast_math -ftz=true")
    kernels = SimpleNamespace(nvcc="nvcc", compiler=SimpleNamespace(program="g++"))
    command = build_kernels.Kernels._nvcc(kernels, ["-c"], [])
    assert command == ["nvcc", "-ccbin=g++", "--threads=2", "-ftz=true", "-O3", *nvcc.EXACT, "-c"]


@needs_nvcc
@pytest.mark.parametrize("folder", ["with space", "with,comma"])
@pytest.mark.parametrize("command", ["g++", "ccache g++ -m64"])
def test_nvcc_passes_on_what_the_host_compiler_needs(command, folder, tmp_path):
    """With torch in a folder of any name, and a compiler after a launcher, which need not exist."""
    torch = tmp_path / folder
    torch.mkdir()
    (torch / "of_torch.h").touch()
    (tmp_path / "binding.cpp").write_text('#include "of_torch.h"\n')
    subprocess.run(["g++", "-shared", "-o", torch / "libtorch_cpu.so", "-x", "c++", os.devnull], check=True)
    kernels = SimpleNamespace(nvcc=shutil.which("nvcc"), compiler=compiler.Compiler(command.split(), "g++"))
    call = build_kernels.Kernels._nvcc
    compiling = call(kernels, ["-c", str(tmp_path / "binding.cpp")], ["-fPIC", f"-I{torch}"])
    subprocess.run([*compiling, "-o", tmp_path / "binding.o"], check=True)
    linking = call(kernels, ["-shared", "-nodlink", "-cudart=static"], ["-s", f"-L{torch}"])
    subprocess.run([*linking, tmp_path / "binding.o", "-ltorch_cpu", "-o", tmp_path / "binding.so"], check=True)
    assert (tmp_path / "binding.so").is_file()


@pytest.fixture
def project(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.cpp").write_text(f'#include "{name}.h"\nint {name}() {{ return {name.upper()}; }}\n')
        (tmp_path / f"{name}.h").write_text(f"#define {name.upper()} 1\n")
    return tmp_path


def make(project: Path, folder: str, *options: str) -> list[Path]:
    """Compile both sources; return those with new objects."""
    ninja = ninja_file.Ninja(project / folder, jobs=2)
    command = ["g++", *options]
    objects = {name: ninja.compile(str(project / f"{name}.cpp"), command, "any") for name in ("a", "b")}
    before = {name: path.stat().st_mtime_ns if path.exists() else 0 for name, path in objects.items()}
    said = ninja.run(*objects.values())
    assert not said
    return [name for name, path in objects.items() if path.stat().st_mtime_ns != before[name]]


@pytest.mark.parametrize("folder", ["objects", "with space"])
def test_a_touched_header_compiles_what_includes_it(project, folder):
    assert make(project, folder) == ["a", "b"]
    assert make(project, folder) == []
    (project / "a.h").write_text("#define A 2\n")
    assert make(project, folder) == ["a"]


def test_objects_of_other_flags_are_kept(project):
    assert make(project, "objects", "-O1") == ["a", "b"]
    assert make(project, "objects", "-O2") == ["a", "b"]
    assert make(project, "objects", "-O1") == []


def test_an_error_is_found_in_what_compilers_say(project):
    (project / "a.h").write_text('#error "this header"\n')
    ninja = ninja_file.Ninja(project / "objects", jobs=2)
    said = ninja.run(ninja.compile(str(project / "a.cpp"), ["g++"], "any"))
    assert "a.h:1:2: error: #error" in ninja_file.first_error(said)


def test_the_widest_instruction_set_of_this_machine():
    """As for CBAM_FUSED_NATIVE=1."""
    isas = flags.isas("x86_64")
    defined = [f"#define __{name}__ 1" for name in ("AVX2", "FMA", "F16C")]
    assert flags.widest(isas, "") == "generic"
    assert flags.widest(isas, "\n".join(defined)) == "avx2"
    assert flags.widest(isas, "\n".join(defined[:2])) == "generic"
    defined += [f"#define __AVX512{part}__ 1" for part in ("F", "BW", "DQ", "VL")]
    assert flags.widest(isas, "\n".join(defined)) == "avx512"
    assert flags.widest(isas, "\n".join([*defined, "#define __AVX512BF16__ 1"])) == "avx512bf16"
    assert flags.widest(flags.isas("aarch64"), "") == "generic"


def test_every_source_is_compiled():
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.c*") if path.suffix in (".cpp", ".cu")}
    known = {build_kernels.BINDING, build_kernels.CUDA_BINDING, *chain(*map(flags.sources, flags.X86_64))}
    assert sources == known | set(build_kernels.cuda_sources())
