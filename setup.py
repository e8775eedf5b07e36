"""Builds fastloss._C: the ops for torch's stable ABI, one library for every torch from 2.13 on.

The C++ standard library and torch's headers are all it needs. Metadata is in pyproject.toml.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError:
    sys.exit(
        "fastloss: building needs torch >= 2.13, which cannot be imported here; run 'pip install torch' first, or "
        "leave out --no-build-isolation so that pip provides it."
    )

VERSION = re.search(r'^version = "(.*)"', Path("pyproject.toml").read_text(), re.M).group(1)
COMPILER = os.environ.get("CXX", "c++")


def compiler_version():
    if shutil.which(COMPILER) is None:
        sys.exit(
            f"fastloss: building needs a C++20 compiler, but '{COMPILER}' was not found; install g++ >= 11 or "
            "clang >= 14 (Debian, Ubuntu: apt-get install g++), or set CXX."
        )
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


class BuildLibrary(BuildExtension):
    def build_extensions(self):
        define = [f'-DFASTLOSS_COMPILER="{compiler_version()}"', f'-DFASTLOSS_VERSION="{VERSION}"']
        for extension in self.extensions:
            extension.extra_compile_args["cxx"] += define
        super().build_extensions()


setup(
    ext_modules=[
        CppExtension(
            "fastloss._C",
            sorted(str(path) for path in [Path("csrc/ops.cpp"), *Path("csrc/cpu").glob("*.cpp")]),
            include_dirs=include_paths(),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            extra_compile_args={
                "cxx": [
                    "-std=c++20",
                    "-O3",
                    "-Wall",
                    "-Wno-psabi",  # vectors wider than the baseline's registers never cross a call
                    "-Wno-maybe-uninitialized",  # false, inside g++'s own avx512fintrin.h
                    "-Wno-uninitialized",
                    "-fvisibility=hidden",
                    "-DTORCH_TARGET_VERSION=0x020d000000000000",
                ]
            },
        )
    ],
    cmdclass={"build_ext": BuildLibrary.with_options(use_ninja=shutil.which("ninja") is not None)},
)
