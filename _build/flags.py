"""What the C++ compiler is told, behind the flags of the user, which so cannot change what is computed."""

COMMON = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"]
# A target of torch 2.10 keeps to what every torch since then has, whichever the headers are from.
BINDING = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The kernels count on NaN, on infinities, and on the order in which they add, which -ffast-math and its parts give up.
# At the link such flags would have every thread of the process round denormals to zero.
IEEE = [
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fsigned-zeros",
]
# gcc turns branches into the selects that vectorise only where a comparison may not trap; clang warns where that word is
# not in front as well. What is optimised at the link would be so with the flags of one source for all.
KERNELS = ["-fno-trapping-math", *IEEE, "-fno-math-errno", "-fno-trapping-math", "-fno-lto"]
LINK = ["-O3", *IEEE]

F16C = ["-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", *F16C, "-mprefer-vector-width=512"]
# Each begins with what takes back an instruction set that the user's flags chose for all.
X86_64 = {
    "generic": ["-march=x86-64", "-mno-avx"],
    "avx2": ["-march=x86-64", "-mno-avx512f", "-mavx2", *F16C],
    "avx512": ["-march=x86-64", "-mno-avx512bf16", *AVX512],
    "avx512bf16": ["-march=x86-64", *AVX512, "-mavx512bf16"],
}
# The warning comes from gcc's own AVX-512 headers; clang does not know it.
QUIET_GCC = ["-Wno-maybe-uninitialized"]

# For make sanitize: every read or write beyond a tensor, and every undefined operation, ends the process.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1"]


def isas(machine: str) -> dict[str, list[str]]:
    """The instruction sets that there are kernels for, from the narrowest on, with their flags.

    generic is linked first, since of an inline function in several objects the linker keeps the first: it must run
    anywhere.
    """
    return X86_64 if machine == "x86_64" else {"generic": []}


def sources(isa: str) -> list[str]:
    """Two, for two cores; the one that takes longer first."""
    return [f"csrc/cpu/isa/{isa}_{half}.cpp" for half in ("backward", "forward")]


# What an instruction set that has kernels for bfloat16 alone takes the others from.
BASE = {"avx512bf16": "avx512"}


def widest(isas: dict[str, list[str]], macros: str) -> str:
    """The last of the instruction sets that the compiler has for this processor; macros: what it defines for it."""
    return [
        isa
        for isa, flags in isas.items()
        if all(f"#define __{flag[2:].upper()}__ " in macros for flag in flags if flag in (*AVX512[:-1], "-mavx512bf16"))
    ][-1]
