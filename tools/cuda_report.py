"""Compile report of the CUDA kernels, from nvcc alone: what each needs, and whether it moves 16 bytes at a time.

    python tools/cuda_report.py            every architecture that setup.py builds by default
    python tools/cuda_report.py 8.0 9.0    these

A line a kernel and architecture: registers a thread, bytes of spills and of stack, static shared memory, and how many
16-byte global loads and stores its PTX has. Where nvdisasm is found (tools/sass.py), a second table has the
instructions a logit of the kernels that matter, by class, their occupancy and the bytes that a multiprocessor of an
H100 has in flight. Exits with 1 if registers spill, if a kernel that should access memory 16 bytes at a time does not,
or if one of the second table is beyond its limits.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import sass

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/cuda/ops.cu"

# Whose logits lie side by side. The others: targets, a class dimension with strides, gradients with gaps.
WIDE_READERS = {"scale_dense", "scale_strided", "sigmoid_count", "sigmoid_loss", "softmax_rows", "softmax_tile"}
WIDE_WRITERS = WIDE_READERS - {"sigmoid_count"}
COUNTS_ONLY = "CountNorms"  # the loss that writes no gradient


class Hot(NamedTuple):
    """A kernel at a shape, as csrc/cuda/schedule.h runs it on an H100, and its limits."""

    kernel: str
    shape: str
    threads: int  # of a block
    shared: int  # dynamic, of a block
    logits: int  # of a thread in a turn of each loop
    in_flight: int  # bytes of a thread
    most_instructions: float
    least_in_flight: int  # of a multiprocessor


HOT = [
    # A turn is a row; the next row arrives meanwhile.
    Hot("softmax_tile<float, CrossEntropy, 12, 9>", "C = 12", 128, 8 * (32 * 12 * 4 + 16), 12, 12 * 4, 28, 40_000),
    Hot("softmax_tile<bfloat16, CrossEntropy, 12, 9>", "C = 12", 128, 8 * (32 * 12 * 2 + 16), 12, 12 * 2, 36, 20_000),
    # Two loops, of four packs each.
    Hot("softmax_rows<float, CrossEntropy>", "C = 1000", 128, 4 * 4000, 16, 64, 18, 40_000),
    Hot("softmax_rows<float, CrossEntropy>", "C = 32000", 1024, 128_000, 16, 64, 18, 40_000),
    Hot("softmax_rows<bfloat16, CrossEntropy>", "C = 32000", 512, 64_000, 32, 64, 18, 40_000),
    Hot("softmax_positions<float, CrossEntropy, 4>", "C = 150", 256, 128 * (17 * 4 + 4 + 150 * 4), 16, 64, 30, 32_000),
    Hot(
        "softmax_positions<bfloat16, CrossEntropy, 8>", "C = 150", 256, 256 * (17 * 4 + 4 + 150 * 2), 32, 64, 34, 16_000
    ),
    Hot("sigmoid_loss<float, SigmoidCrossEntropy, false>", "", 256, 0, 4, 32, 60, 32_000),
    Hot("sigmoid_loss<float, SigmoidFocal<Focal<float, 2>>, false>", "gamma = 2", 256, 0, 4, 32, 95, 32_000),
]
# Of a multiprocessor of sm_90, and what a block takes beside what it asks for.
REGISTERS, THREADS, SHARED, RESERVED_SHARED = 65536, 2048, 228 * 1024, 1024


def blocks_on_a_multiprocessor(hot, kernel):
    warps = hot.threads // 32
    by_registers = REGISTERS // (warps * 32 * -(-kernel.registers // 8) * 8)
    by_shared = SHARED // (hot.shared + kernel.shared + RESERVED_SHARED)
    return min(by_registers, by_shared, THREADS // hot.threads, 32)


def hot_row(hot, kernel, turns):
    """(cells of the table, faults). The loops that count access 16 bytes at a time, the others what is left over."""
    wide = [turn for turn in turns if turn.wide_loads + turn.wide_stores]
    if hot.kernel.startswith(("softmax_rows", "softmax_positions")):
        batches = [turn for turn in wide if max(turn.wide_loads, turn.wide_stores) == 4]
        wide = [min((t for t in batches if bool(t.wide_stores) == stores), key=size) for stores in (False, True)]
    else:
        wide = [min(wide, key=size)]
    counts = {name: sum(turn.counts[name] for turn in wide) / hot.logits for name in (*sass.CLASSES, "integer")}
    total = sum(counts.values())
    blocks = blocks_on_a_multiprocessor(hot, kernel)
    in_flight = blocks * hot.threads * hot.in_flight
    faults = []
    if total > hot.most_instructions:
        faults.append(f"{hot.kernel} has {total:.1f} instructions a logit, but should have {hot.most_instructions}.")
    if in_flight < hot.least_in_flight:
        faults.append(f"{hot.kernel} at {hot.shape} has {in_flight} bytes in flight, not {hot.least_in_flight}.")
    cells = [f"{count:.1f}" for count in counts.values()] + [f"{total:.1f}"]
    cells += [f"{blocks * hot.threads / THREADS:.0%}", f"{in_flight / 1024:.0f} KB"]
    return cells, faults


def size(turn):
    return sum(turn.counts.values())


def print_hot(kernels, sections):
    """The second table, for sm_90. Returns what is wrong."""
    faults = []
    print()
    print(*(f"{name:>8}" for name in (*sass.CLASSES, "integer", "total", "warps", "flight")), " kernel")
    for hot in HOT:
        kernel, (code, labels) = next((k, sections[m]) for m, k in kernels.items() if k.name == hot.kernel)
        cells, wrong = hot_row(hot, kernel, sass.turns(code, labels))
        print(*(f"{cell:>8}" for cell in cells), f" {hot.kernel} {hot.shape}")
        faults += wrong
    return faults


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
        # Double's exp is a call, around which ptxas may keep two registers in memory.
        if self.spills > (16 if "<double" in self.name else 0):
            yield f"{where} spills {self.spills} bytes of registers to memory, but should spill none."
        if base in WIDE_READERS and not self.wide_loads:
            yield f"{where} has no 16-byte global load."
        if base in WIDE_WRITERS and COUNTS_ONLY not in self.name and not self.wide_stores:
            yield f"{where} has no 16-byte global store."


def compile_report(architecture, nvdisasm=None):
    """Kernels of csrc/cuda/ops.cu by mangled name for one architecture, such as "8.0"; and their code, disassembled."""
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
        sections = sass.disassemble(nvdisasm, f"{folder}/ops.cubin") if nvdisasm else {}
    kernels = {}
    for entry in result.stdout.split("Compiling entry function '")[1:]:
        mangled = entry[: entry.index("'")]
        # The functions that a kernel calls are listed with it.
        number = {
            what: sum(int(n) for n in re.findall(rf"(\d+) {pattern}", entry))
            for what, pattern in (("spills", "bytes spill"), ("stack", "bytes stack frame"), ("shared", "bytes smem"))
        }
        registers = int(re.search(r"Used (\d+) registers", entry).group(1))
        kernels[mangled] = Kernel(demangle(mangled), architecture, registers, **number, **accesses[mangled])
    return kernels, sections


def wide_accesses(ptx):
    """The numbers of 16-byte global loads and stores of each kernel in PTX."""
    count = {}
    for body in re.split(r"^\s*(?:\.visible|\.weak)?\s*\.entry ", ptx, flags=re.M)[1:]:
        found = Counter(re.findall(r"\b(ld|st)\.global(?:\.\w+)*\.(?:v4\.\w32|v2\.\w64)\b", body))
        copies = len(re.findall(r"\bcp\.async\.cg\.shared\.global \S+ \S+ 16;", body))  # into shared memory
        count[re.match(r"[\w$]+", body).group()] = {"wide_loads": found["ld"] + copies, "wide_stores": found["st"]}
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
        kernels, sections = compile_report(architecture, sass.find_nvdisasm() if architecture == "9.0" else None)
        for kernel in sorted(kernels.values()):
            print(
                f"{architecture:>5} {kernel.registers:4} {kernel.spills:5} {kernel.stack:5} {kernel.shared:6} "
                f"{kernel.wide_loads:5} {kernel.wide_stores:6}  {kernel.name}"
            )
            faults += kernel.faults()
        if sections:
            faults += print_hot(kernels, sections)
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
