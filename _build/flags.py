"""The flags of the C++ compiler. They follow the user's flags, which therefore cannot change the results."""

COMMON = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"]
# Target torch 2.10: use only functions that every torch since 2.10 has, with any headers.
BINDING = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The kernels need NaN, infinities and their order of additions, which -ffast-math and its parts do not preserve. At the
# link such flags would flush denormals to zero in every thread of the process.
IEEE = [
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fsigned-zeros",
]
# gcc converts branches to selects, which vectorise, only with -fno-trapping-math; clang warns unless this flag also
# comes first. -fno-lto: link-time optimisation would use one source's flags for all.
KERNELS = ["-fno-trapping-math", *IEEE, "-fno-math-errno", "-fno-trapping-math", "-fno-lto"]
LINK = ["-O3", *IEEE]

F16C = ["-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", *F16C, "-mprefer-vector-width=512"]
# Each begins with flags that revert an instruction set in the user's flags.
X86_64 = {
    "generic": ["-march=x86-64", "-mno-avx"],
    "avx2": ["-march=x86-64", "-mno-avx512f", "-mavx2", *F16C],
    "avx512": ["-march=x86-64", "-mno-avx512bf16", *AVX512],
    "avx512bf16": ["-march=x86-64", *AVX512, "-mavx512bf16"],
}
# The warning comes from gcc's own AVX-512 headers; clang does not know it.
QUIET_GCC = ["-Wno-maybe-uninitialized"]

# For make sanitize: an access beyond a tensor or an undefined operation aborts the process.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1"]


def isas(machine: str) -> dict[str, list[str]]:
    """The instruction sets with kernels, from the narrowest to the widest, with their flags.

    generic is linked first: of an inline function in several objects the linker keeps the first copy, which must run
    on any processor.
    """
    return X86_64 if machine == "x86_64" else {"generic": []}


def sources(isa: str) -> list[str]:
    """Two, for two cores; the one that takes longer first."""
    return [f"csrc/cpu/isa/{isa}_{half}.cpp" for half in ("backward", "forward")]


# What an instruction set that has kernels for bfloat16 alone takes the others from.
BASE = {"avx512bf16": "avx512"}


def widest(isas: dict[str, list[str]], macros: str) -> str:
    """The widest instruction set of this processor; macros: those that the compiler defines for it."""
    return [
        isa
        for isa, flags in isas.items()
        if all(f"#define __{flag[2:].upper()}__ " in macros for flag in flags if flag in (*AVX512[:-1], "-mavx512bf16"))
    ][-1]
