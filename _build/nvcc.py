"""Detects nvcc and GPUs, and decides whether and for which architectures to build the CUDA kernels."""

import os
import re
import shlex
import shutil
import subprocess

# Without a GPU, as in a container: the architectures of CUDA 13, except those of boards with their own CPU.
ARCHITECTURES = "7.5 8.0 8.6 8.9 9.0 10.0 12.0"


# nvcc's defaults, repeated after the user's flags.
EXACT = ["-ftz=false", "-prec-div=true", "-prec-sqrt=true"]
# Environment variables from which nvcc reads flags, before and after those of the command.
FLAGS = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")


class Unavailable(Exception):
    """The CUDA kernels cannot be built, for this reason."""


def wanted() -> str:
    """CBAM_FUSED_CUDA: with "1" the build fails if the kernels cannot be built, "0" leaves them out; default "auto".

    Raises:
        ValueError: another value.
    """
    value = os.environ.get("CBAM_FUSED_CUDA", "auto")
    if value not in ("0", "1", "auto"):
        raise ValueError(f"CBAM_FUSED_CUDA must be 0, 1 or auto, got {value!r}")
    return value


def find_nvcc() -> str | None:
    """Path of nvcc, in CUDA_HOME if that is set, else on PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)


def nvcc_version(nvcc: str) -> str:
    """For example "13.0"; empty if unknown."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else ""


def user_flags() -> list[str]:
    """The flags in FLAGS, except fast math, which no later option fully reverts."""
    words = [word for name in FLAGS for word in shlex.split(os.environ.get(name, ""))]
    return [word for word in words if not re.fullmatch("--?use_fast_math", word)]


def plan(torch_cuda: str | None, nvcc: str | None, native: bool) -> list[str]:
    """The compute capabilities to compile for, in the form of architectures().

    Args:
        torch_cuda: CUDA version of torch.
        native: for the GPUs of this machine only.

    Raises:
        Unavailable: the kernels cannot be built for this torch, or are disabled.
    """
    if wanted() == "0":
        raise Unavailable("CBAM_FUSED_CUDA=0")
    reason = obstacle(torch_cuda, nvcc)
    if reason:
        raise Unavailable(reason)
    present = present_architectures()
    if native and not present and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        raise Unavailable("CBAM_FUSED_NATIVE=1, and nvidia-smi reports no GPU")
    return architectures(known_architectures(nvcc), present)


def obstacle(torch_cuda: str | None, nvcc: str | None) -> str:
    """Why the CUDA kernels cannot be built for this torch; empty if they can."""
    if torch_cuda is None:
        return "the torch of the build is one without CUDA"
    if nvcc is None:
        home = os.environ.get("CUDA_HOME")
        return f"CUDA_HOME={home} has no bin/nvcc" if home else "nvcc was not found on PATH, and CUDA_HOME is not set"
    version = nvcc_version(nvcc)
    if not version:
        return f"`{nvcc} --version` failed"
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc is of CUDA {version}, but torch of CUDA {torch_cuda}; the major versions must agree"
    return ""


def known_architectures(nvcc: str) -> list[str]:
    """For example ["7.5", ..., "12.1"], the oldest first."""
    text = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return sorted((f"{number[:-1]}.{number[-1]}" for number in re.findall(r"compute_(\d+)", text)), key=_numbers)


def present_architectures() -> list[str]:
    """Compute capabilities of the GPUs that nvidia-smi reports; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(set(re.findall(r"^\d+\.\d+$", text, re.M)), key=_numbers)


def architectures(known: list[str], present: list[str]) -> list[str]:
    """The compute capabilities to compile for, as in TORCH_CUDA_ARCH_LIST.

    "9.0" is machine code, "9.0+PTX" also includes code that the driver compiles for newer GPUs. Without
    TORCH_CUDA_ARCH_LIST: those of this machine's GPUs. Without a GPU, or with TORCH_CUDA_ARCH_LIST=all: ARCHITECTURES,
    the newest with PTX.

    Args:
        known: those that nvcc supports.
        present: those of this machine's GPUs.

    Raises:
        Unavailable: nvcc supports none of the GPUs, or TORCH_CUDA_ARCH_LIST is invalid.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if asked and asked != ["all"]:
        return _parsed(asked, known)
    if asked or not present:
        default = [capability for capability in ARCHITECTURES.split() if capability in known]
        return [*default[:-1], f"{default[-1]}+PTX"]
    chosen = {}
    for capability in present:
        older = [each for each in known if _numbers(each) <= _numbers(capability)]
        if older:  # for a GPU that nvcc does not support, the driver compiles the PTX of an older one
            chosen[older[-1]] = chosen.get(older[-1], "") or ("" if older[-1] == capability else "+PTX")
    if not chosen:
        raise Unavailable(
            f"nvcc must support a GPU of this machine ({', '.join(present)}), got nvcc for {', '.join(known)}"
        )
    return [capability + ptx for capability, ptx in chosen.items()]


def _parsed(asked: list[str], known: list[str]) -> list[str]:
    chosen = {}
    for entry in asked:
        # 9.0a and 10.0f add instructions that these kernels do not use.
        match = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", entry)
        if match is None or match[1] not in known:
            raise Unavailable(
                "TORCH_CUDA_ARCH_LIST must list compute capabilities that nvcc supports "
                f"({', '.join(known)}), with or without +PTX, got {entry!r}"
            )
        chosen[match[1]] = chosen.get(match[1], "") or match[2] or ""
    return [capability + ptx for capability, ptx in chosen.items()]


def code_options(architectures: list[str]) -> list[str]:
    """nvcc's options for these architectures.

    Those of a generation share the PTX of its oldest: the kernels distinguish 7, 8 and 9 or newer, and nvcc spends most
    of its time on PTX.
    """
    generations: dict[int, tuple[str, list[str]]] = {}
    for architecture in sorted(architectures, key=lambda each: _numbers(each.removesuffix("+PTX"))):
        capability, _, ptx = architecture.partition("+")
        number = capability.replace(".", "")
        oldest, code = generations.setdefault(min(_numbers(capability)[0], 9), (number, []))
        code.append(f"sm_{number}")
        if ptx:
            code.append(f"compute_{oldest}")
    return [f"-gencode=arch=compute_{oldest},code=[{','.join(code)}]" for oldest, code in generations.values()]


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
