"""Builds fastloss._C: the ops for torch's stable ABI, one library for every torch from 2.13 on, CPU or CUDA.

The C++ standard library and torch's headers are all it needs; for the CUDA kernels nvcc, but not a CUDA build of torch.
Metadata is in pyproject.toml. Environment:

FASTLOSS_CUDA          auto (default): CUDA kernels if nvcc is found, at CUDA_HOME or on PATH; 1: they must be; 0: none.
TORCH_CUDA_ARCH_LIST   as torch reads it: "8.0;9.0+PTX". Default: every architecture that nvcc knows of those below.
MAX_JOBS               compiler processes at a time.
CXX                    the host compiler.
"""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.modified import newer_group

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError:
    sys.exit(
        "fastloss: building needs torch >= 2.13, which cannot be imported here; run 'pip install torch' first, or "
        "leave out --no-build-isolation so that pip provides it."
    )

VERSION = re.search(r'^version = "(.*)"', Path("pyproject.toml").read_text(), re.M).group(1)
COMPILER = os.environ.get("CXX", "c++")
# Turing to Blackwell; PTX of the last serves what comes after it.
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
COMMON_FLAGS = ["-std=c++20", "-O3", "-DTORCH_TARGET_VERSION=0x020d000000000000"]


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


class BuildLibrary(BuildExtension):
    def build_extensions(self):
        (extension,) = self.extensions
        nvcc = find_nvcc()
        architectures = cuda_architectures(nvcc) if nvcc else []
        cuda_version = re.search(r"release ([\d.]+)", output_of(nvcc, "--version")).group(1) if nvcc else ""
        define = {
            "FASTLOSS_VERSION": VERSION,
            "FASTLOSS_COMPILER": compiler_version(),
            "FASTLOSS_CUDA_VERSION": cuda_version,
            "FASTLOSS_CUDA_ARCHITECTURES": " ".join(architectures),
        }
        extension.extra_compile_args["cxx"] += [f'-D{name}="{value}"' for name, value in define.items()]
        if nvcc:
            self.compile_cuda(extension, nvcc, cuda_version, architectures)
        else:
            extension.sources.append("csrc/cuda/missing.cpp")
        super().build_extensions()
        # Fails here, and not where it is imported, if a symbol is missing.
        ctypes.CDLL(os.path.abspath(self.get_ext_fullpath(extension.name)), mode=os.RTLD_NOW)

    def compile_cuda(self, extension, nvcc, cuda_version, architectures):
        # Not torch's CUDAExtension: that wants a CUDA build of torch, and of nvcc's own version. The object is kept
        # between builds, as it takes minutes.
        target = Path("build", f"cuda-{cuda_version}", f"ops_{'_'.join(architectures)}.o")
        sources = ["setup.py", *map(str, [*Path("csrc").glob("*.h"), *Path("csrc/cuda").glob("*.cu*")])]
        if newer_group(sources, str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [nvcc, "-c", "csrc/cuda/ops.cu", "-o", str(target), "-ccbin", COMPILER, *COMMON_FLAGS]
            command += ["--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wno-psabi"]
            command += ["-Xfatbin=-compress-all", f"--threads={os.environ.get('MAX_JOBS') or os.cpu_count()}"]
            command += [f"-I{path}" for path in extension.include_dirs]
            command += [flag for architecture in architectures for flag in generate_code(architecture)]
            print(shlex.join(command), flush=True)
            subprocess.run(command, check=True)
        extension.extra_objects.append(str(target))
        # The CUDA runtime inside the library: it loads where there is none, and beside any other.
        libraries = re.search(r"LIBRARIES=(.*)", output_of(nvcc, "--dryrun", "-x", "cu", os.devnull)).group(1)
        extension.library_dirs += [flag.removeprefix("-L") for flag in shlex.split(libraries) if flag.startswith("-L")]
        extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
        extension.extra_link_args.append("-Wl,--exclude-libs,libcudart_static.a")


setup(
    ext_modules=[
        CppExtension(
            "fastloss._C",
            sorted(str(path) for path in [Path("csrc/ops.cpp"), *Path("csrc/cpu").glob("*.cpp")]),
            include_dirs=include_paths(),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.*")),
            extra_compile_args={
                "cxx": [
                    *COMMON_FLAGS,
                    "-g0",  # Python's own flags have -g
                    "-Wall",
                    "-Wno-psabi",  # vectors wider than the baseline's registers never cross a call
                    "-Wno-maybe-uninitialized",  # false, inside g++'s own avx512fintrin.h
                    "-Wno-uninitialized",
                    "-fvisibility=hidden",
                ]
            },
        )
    ],
    cmdclass={"build_ext": BuildLibrary.with_options(use_ninja=shutil.which("ninja") is not None)},
)
