"""Compile report of the CUDA kernels, from nvcc alone: what each needs, and whether it moves 16 bytes at a time.

    python tools/cuda_report.py            every architecture that setup.py builds by default
    python tools/cuda_report.py 8.0 9.0    these

A line a kernel and architecture: registers a thread, bytes of spills and of stack, static shared memory, and how many
16-byte global loads and stores its PTX has. Exits with 1 if registers spill, or if a kernel that should access memory
16 bytes at a time does not.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/cuda/ops.cu"

# Whose logits lie side by side. The others: targets, a class dimension with strides, gradients with gaps.
WIDE_READERS = {"scale_dense", "scale_strided", "sigmoid_count", "sigmoid_loss", "softmax_rows", "softmax_tile"}
WIDE_WRITERS = WIDE_READERS - {"sigmoid_count"}
COUNTS_ONLY = "CountNorms"  # the loss that writes no gradient


class Kernel(NamedTuple):
    name: str
    architecture: str
    registers: int
    spills: int
    stack: int
    shared: int
    wide_loads: int
    wide_stores: int

    def faults(self):
        """What is wrong with it, in sentences."""
        where = f"{self.name} on sm_{self.architecture.replace('.', '')}"
        base = re.match(r"\w+", self.name).group()
        if self.spills:
            yield f"{where} spills {self.spills} bytes of registers to memory, but should spill none."
        if base in WIDE_READERS and not self.wide_loads:
            yield f"{where} has no 16-byte global load."
        if base in WIDE_WRITERS and COUNTS_ONLY not in self.name and not self.wide_stores:
            yield f"{where} has no 16-byte global store."


def compile_report(architecture):
    """The kernels of csrc/cuda/ops.cu for one architecture, such as "8.0"."""
    from torch.utils.cpp_extension import include_paths

    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-cubin", f"-arch=sm_{architecture.replace('.', '')}", "-std=c++20", "-O3", "-Xptxas=-v"]
        command += ["--expt-relaxed-constexpr", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += [f"-I{path}" for path in include_paths()]
        command += ["--keep", f"--keep-dir={folder}", "-o", f"{folder}/ops.cubin", str(SOURCE)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            raise RuntimeError(f"nvcc failed:\n{result.stdout}")
        (ptx,) = Path(folder).glob("*.ptx")
        accesses = wide_accesses(ptx.read_text())
    kernels = []
    for entry in result.stdout.split("Compiling entry function '")[1:]:
        mangled = entry[: entry.index("'")]
        # The functions that a kernel calls are listed with it.
        number = {
            what: sum(int(n) for n in re.findall(rf"(\d+) {pattern}", entry))
            for what, pattern in (("spills", "bytes spill"), ("stack", "bytes stack frame"), ("shared", "bytes smem"))
        }
        registers = int(re.search(r"Used (\d+) registers", entry).group(1))
        kernels.append(Kernel(demangle(mangled), architecture, registers, **number, **accesses[mangled]))
    return kernels


def wide_accesses(ptx):
    """The numbers of 16-byte global loads and stores of each kernel in PTX."""
    count = {}
    for body in re.split(r"^\s*(?:\.visible|\.weak)?\s*\.entry ", ptx, flags=re.M)[1:]:
        found = Counter(re.findall(r"\b(ld|st)\.global(?:\.\w+)*\.(?:v4\.\w32|v2\.\w64)\b", body))
        count[re.match(r"[\w$]+", body).group()] = {"wide_loads": found["ld"], "wide_stores": found["st"]}
    return count


def demangle(name):
    """``softmax_tile<float, fastloss::Focal<float>>`` without namespaces, result and arguments."""
    text = subprocess.run(["c++filt", name], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return re.sub(r"^void |\(fastloss::.*$|fastloss::|__nv_", "", text).replace("> >", ">>")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", help='such as "8.0"')
    architectures = parser.parse_args().architectures
    if not architectures:
        default = re.search(r"^CUDA_ARCHITECTURES = \((.*)\)", (ROOT / "setup.py").read_text(), re.M).group(1)
        architectures = re.findall(r"[\d.]+", default)
    faults = []
    print(f"{'arch':>5} {'regs':>4} {'spill':>5} {'stack':>5} {'shared':>6} {'loads':>5} {'stores':>6}  kernel")
    for architecture in architectures:
        for kernel in sorted(compile_report(architecture)):
            print(
                f"{architecture:>5} {kernel.registers:4} {kernel.spills:5} {kernel.stack:5} {kernel.shared:6} "
                f"{kernel.wide_loads:5} {kernel.wide_stores:6}  {kernel.name}"
            )
            faults += kernel.faults()
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
