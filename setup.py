"""Builds fastloss's two libraries: the ops, for every torch from 2.10 on, and the small Python module fastloss._C.

libfastloss_ops.so is loaded by torch.ops.load_library and knows torch's stable ABI and nothing of Python: every source
in csrc but csrc/ops/module.cpp, which is fastloss._C. The C++ standard library and torch's headers are all they need;
for the CUDA kernels nvcc, but not a CUDA build of torch. ninja compiles what has changed since the last time; objects
are kept in build/. Metadata is in pyproject.toml. Environment:

FASTLOSS_CUDA          auto (default): CUDA kernels if nvcc is found, at CUDA_HOME or on PATH; 1: they must be; 0: none.
TORCH_CUDA_ARCH_LIST   as torch reads it: "8.0;9.0+PTX". Default: every architecture that nvcc knows of those below.
MAX_JOBS               compiler processes at a time.
CXX                    the host compiler.
CXXFLAGS, LDFLAGS      more flags for it and for linking (tools/build_wheel.sh: an older C library).
FASTLOSS_PYTHONS       interpreters to build fastloss._C for beside this one: "python3.10 python3.12".
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths
except ImportError:
    sys.exit(
        "fastloss: building needs torch >= 2.10, which cannot be imported here; run 'pip install torch' first, or "
        "leave out --no-build-isolation so that pip provides it."
    )

VERSION = re.search(r'^version = "(.*)"', Path("pyproject.toml").read_text(), re.M).group(1)
COMPILER = os.environ.get("CXX", "c++")
TORCH_ABI = "2.10"
# Turing to Blackwell; PTX of the last serves what comes after it, and 8.0's code all of Ampere and Ada.
CUDA_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")

OPS_LIBRARY = "libfastloss_ops.so"
MODULE = "csrc/ops/module.cpp"
EXPORTS = "csrc/ops/exports.map"


def user_flags(variable):
    return shlex.split(os.environ.get(variable, ""))


COMMON_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", *(word for path in include_paths() for word in ("-isystem", path))]
CXX_FLAGS = [
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",  # nobody reads errno after a square root, and so it is one instruction for a whole vector
    "-Wall",
    "-Wextra",
    "-Werror=switch",  # a loss that is forgotten somewhere does not compile
    "-Wno-psabi",  # vectors wider than the baseline's registers never cross a call
    *user_flags("CXXFLAGS"),
]
# The C++ standard library goes before torch's libraries, which have parts of it too, and not the same in every version.
LINK_FLAGS = ["-Wl,--as-needed", f"-Wl,--version-script={EXPORTS}", "-lstdc++", "-lm"]
OPS_FLAGS = [
    # 2.10 is 0x020a...: nothing newer than it is used.
    "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*map(int, TORCH_ABI.split("."))),
]


def flags_tag():
    """Objects with flags of the user's own have a folder of their own. (With other LDFLAGS ninja links anew.)"""
    flags = os.environ.get("CXXFLAGS", "").strip()
    return f"-{zlib.crc32(flags.encode()):08x}" if flags else ""


def output_of(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return result.stdout


def compiler_version():
    if shutil.which(COMPILER) is None:
        sys.exit(
            f"fastloss: building needs a C++20 compiler, but '{COMPILER}' was not found; install g++ >= 12 or clang >= "
            "14 (Debian, Ubuntu: apt-get install g++), or set CXX."
        )
    return output_of(COMPILER, "--version").splitlines()[0]


def find_ninja():
    # A virtual environment that is not activated has it beside its Python.
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    ninja = shutil.which("ninja", path=places)
    if ninja is None:
        sys.exit("fastloss: building needs ninja, which was not found; run 'pip install ninja' first.")
    return ninja


def find_nvcc():
    """The path of nvcc, or None: build without CUDA."""
    wanted = os.environ.get("FASTLOSS_CUDA") or "auto"
    if wanted not in ("auto", "1", "0"):
        sys.exit(f"fastloss: FASTLOSS_CUDA is '{wanted}', but should be 'auto', '1' or '0'.")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")
    if nvcc is None:
        where = f"at CUDA_HOME ({home})" if home else "on PATH, and CUDA_HOME is not set"
        if wanted == "1":
            sys.exit(
                f"fastloss: FASTLOSS_CUDA is 1, but nvcc was not found {where}; install the CUDA toolkit, 12.0 or "
                "later, or set CUDA_HOME to its folder. FASTLOSS_CUDA=0 builds for the CPU only."
            )
        print(f"fastloss: building for the CPU only: nvcc was not found {where}.")
    return nvcc


def cuda_architectures(nvcc):
    """What to compile for, each "9.0" or "9.0+PTX"."""
    known = {f"{name[:-1]}.{name[-1]}" for name in re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch"))}
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not wanted:
        found = [architecture for architecture in CUDA_ARCHITECTURES if architecture in known]
        return [*found[:-1], found[-1] + "+PTX"]
    for architecture in wanted:
        if re.sub(r"[af]?(\+PTX)?$", "", architecture) not in known:
            sys.exit(
                f"fastloss: TORCH_CUDA_ARCH_LIST has '{architecture}', but should have what {nvcc} compiles for: "
                f"{' '.join(sorted(known, key=float))}, each with or without +PTX."
            )
    return wanted


def generate_code(architecture):
    name = architecture.removesuffix("+PTX").replace(".", "")
    targets = [f"sm_{name}", f"compute_{name}"] if architecture.endswith("+PTX") else [f"sm_{name}"]
    return [f"-gencode=arch=compute_{name},code={target}" for target in targets]


def quoted(words):
    """A command for build.ninja."""
    return shlex.join(map(str, words)).replace("$", "$$")


class BuildLibraries(build_ext):
    """Writes build.ninja, runs it, and copies both libraries to where setuptools wants them."""

    def get_ext_filename(self, fullname):
        *package, name = fullname.split(".")
        return os.path.join(*package, OPS_LIBRARY) if name == "_ops" else super().get_ext_filename(fullname)

    def build_extensions(self):
        compiler = compiler_version()
        nvcc = find_nvcc()
        # What every object depends on, beside its sources and flags.
        self.folder = Path("build", f"{Path(COMPILER).name}-torch{torch.__version__}{flags_tag()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = [
            "builddir = " + str(self.folder),
            "rule compile",
            "  command = $compiler -c $in -o $out -MMD -MF $out.d $flags",
            "  description = $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {quoted([COMPILER])} -shared -o $out $in $flags",
            "  description = $out",
        ]
        ops = self.link_ops(nvcc, compiler)
        modules = [self.link_module(ops, *python) for python in dict.fromkeys(map(tuple, pythons()))]
        ninja = self.folder / "build.ninja"
        ninja.write_text("\n".join(self.lines) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([find_ninja(), "-f", str(ninja), *jobs], check=True)
        package = Path(self.get_ext_fullpath("fastloss._C")).parent
        package.mkdir(parents=True, exist_ok=True)
        for built in (ops, *modules):
            # Written over, it would crash the processes that run with it.
            copy = shutil.copy2(built, package / f"{built.name}.new")
            os.replace(copy, package / built.name)

    def compile(self, source, flags, compiler=(COMPILER,), suffix=""):
        """Adds a source to build.ninja and returns the path of its object."""
        target = self.folder / Path(source).with_suffix(f"{suffix}.o")
        self.lines += [
            f"build {target}: compile {source}",
            f"  compiler = {quoted(compiler)}",
            f"  flags = {quoted(flags)}",
        ]
        return target

    def link(self, name, objects, flags):
        target = self.folder / name
        self.lines += [
            f"build {target}: link {' '.join(map(str, objects))} | {EXPORTS}",
            f"  flags = {quoted([*user_flags('LDFLAGS'), *LINK_FLAGS, *flags])}",
        ]
        return target

    def link_ops(self, nvcc, compiler):
        architectures = cuda_architectures(nvcc) if nvcc else []
        cuda_version = re.search(r"release ([\d.]+)", output_of(nvcc, "--version")).group(1) if nvcc else ""
        define = {
            "FASTLOSS_VERSION": VERSION,
            "FASTLOSS_COMPILER": compiler,
            "FASTLOSS_TORCH_ABI": TORCH_ABI,
            "FASTLOSS_CUDA_VERSION": cuda_version,
            "FASTLOSS_CUDA_ARCHITECTURES": " ".join(architectures),
        }
        words = {"csrc/ops/build_info.cpp": [f'-D{name}="{value}"' for name, value in define.items()]}
        left_out = {MODULE, "csrc/cuda/missing.cpp"} if nvcc else {MODULE}
        objects = [
            self.compile(source, [*COMMON_FLAGS, *CXX_FLAGS, *OPS_FLAGS, *words.get(source, [])])
            for source in sources("*.cpp")
            if source not in left_out
        ]
        # A missing symbol is an error here, and not where the library is loaded.
        flags = [
            "-Wl,-z,defs",
            f"-Wl,-soname,{OPS_LIBRARY}",
            *(f"-L{path}" for path in library_paths()),
            "-ltorch_cpu",
            "-lc10",
        ]
        if nvcc:
            # Not torch's CUDAExtension: that wants a CUDA build of torch, and of nvcc's own version.
            nvcc_flags = [*COMMON_FLAGS, *OPS_FLAGS, "-ccbin", COMPILER, "--expt-relaxed-constexpr"]
            nvcc_flags += [f"-Xcompiler={','.join(CXX_FLAGS)}", "-Xfatbin=-compress-all", "--threads=0"]
            nvcc_flags += [flag for architecture in architectures for flag in generate_code(architecture)]
            suffix = f".cuda{cuda_version}_{'_'.join(architectures)}"
            objects += [self.compile(source, nvcc_flags, [nvcc], suffix) for source in sources("*.cu")]
            # The CUDA runtime inside the library: it loads where there is none, and beside any other.
            libraries = re.search(r"LIBRARIES=(.*)", output_of(nvcc, "--dryrun", "-x", "cu", os.devnull)).group(1)
            flags += [flag for flag in shlex.split(libraries) if flag.startswith("-L")]
            flags += ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,libcudart_static.a"]
        return self.link(OPS_LIBRARY, objects, flags)

    def link_module(self, ops, include, suffix):
        flags = [*COMMON_FLAGS, *CXX_FLAGS, "-isystem", include]
        module = self.compile(MODULE, flags, suffix=suffix)
        return self.link(f"_C{suffix}", [module, ops], ["-Wl,-rpath,$ORIGIN"])


def pythons():
    """The folder of headers and the suffix of extension modules of each Python to build fastloss._C for."""
    yield sysconfig.get_path("include"), sysconfig.get_config_var("EXT_SUFFIX")
    ask = "import sysconfig as s; print(s.get_path('include'), s.get_config_var('EXT_SUFFIX'), sep='\\n')"
    for python in os.environ.get("FASTLOSS_PYTHONS", "").split():
        yield output_of(python, "-c", ask).splitlines()


def sources(pattern):
    return sorted(str(path) for path in Path("csrc").rglob(pattern))


# Named for setuptools; BuildLibraries knows how they are made. depends: what a source distribution has beside them.
setup(
    ext_modules=[
        Extension(
            "fastloss._ops",
            [source for source in sources("*.c*") if source != MODULE],
            depends=[*sources("*.h"), EXPORTS],
        ),
        Extension("fastloss._C", [MODULE]),
    ],
    cmdclass={"build_ext": BuildLibraries},
)
