"""Global memory traffic of the CUDA kernels, counted in the emulator, and the time that memory bandwidth allows for it.

    FASTLOSS_PTXSIM=<folder that holds ptxsim> python benchmarks/traffic.py

Prints a Markdown table. Nothing is timed. Traffic is what the kernels ask for, in 32-byte sectors; what caches save is
not subtracted. Large batches are counted on fewer rows and scaled.
"""

import argparse
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "emulated")]
from emulator import EmulatedSoftmax, import_ptxsim  # noqa: E402
from test_sigmoid_loss import EmulatedSigmoid  # noqa: E402

# TB/s, from NVIDIA's data sheets.
BANDWIDTH = {"A100 40 GB": 1.555, "H100 SXM": 3.35}
# N × C, and the rows that are counted: NER tags, image classes, a vocabulary.
SHAPES = [(6400, 11, 6400), (4096, 1000, 512), (64, 32768, 8)]
# Name, passes over the logits (the reads, and the write of the gradient), launches that the emulator's log leaves out.
SOFTMAX = {"cross_entropy": ("cross entropy", 2, 0), "focal": ("focal", 2, 0), "ghmc": ("GHM-C", 3, 1)}
SIGMOID = {"sigmoid_focal_loss": ("sigmoid focal", 2, 1), "sigmoid_ghmc_loss": ("sigmoid GHM-C", 3, 1)}

INTRODUCTION = """### Counted in emulation, not timed

Moved: bytes of global memory per byte of logits, with targets, losses and scratch. Ideal: the reads of the logits (for
the sigmoid losses, of the targets too) and the write of the gradient alone. Efficiency: the share of the moved 32-byte
sectors that is used, the worse of loads and stores, in the last kernel. Roofline: moved bytes over the bandwidth,
without launches and latency, for {bandwidths}.
"""


def row(name, N, C, rows, dtype, input, passes, hidden_launches, log):
    stats = [launch[-1] for launch in log]
    moved = sum(32 * (s.gld_sectors + s.gst_sectors) for s in stats)
    cells = [
        name,
        f"{N} × {C}",
        str(dtype).removeprefix("torch."),
        "all" if rows == N else rows,
        passes,
        f"{moved / input.nbytes:.3f}",
        # Above 100%: threads of a warp that read the same address.
        f"{min(stats[-1].load_efficiency, stats[-1].store_efficiency, 1):.1%}",
        len(log) + hidden_launches,
        *(f"{moved * N / rows / bandwidth / 1e6:.2f}" for bandwidth in BANDWIDTH.values()),
    ]
    return cells


def print_row(cells):
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ptxsim = import_ptxsim()
    if ptxsim is None:
        sys.exit("FASTLOSS_PTXSIM is not set, but should name the folder that holds ptxsim, the emulator.")
    torch.manual_seed(0)
    print(INTRODUCTION.format(bandwidths=", ".join(f"{gpu} ({tb} TB/s)" for gpu, tb in BANDWIDTH.items())))
    head = ["loss", "N × C", "logits", "rows counted", "ideal", "moved", "efficiency", "launches"]
    print_row(head + [f"{gpu}, µs" for gpu in BANDWIDTH])
    print_row(["---"] * (len(head) + len(BANDWIDTH)))
    cases = [(*shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]

    softmax = EmulatedSoftmax(ptxsim)
    for kind, (name, passes, hidden) in SOFTMAX.items():
        for N, C, rows, dtype in cases:
            input, target = torch.randn(rows, C).to(dtype), torch.randint(0, C, (rows,))
            _, log = softmax.loss(kind, input, target, grad=torch.empty_like(input))
            print_row(row(name, N, C, rows, dtype, input, passes, hidden, log))

    sigmoid = EmulatedSigmoid(ptxsim)
    for kind, (name, passes, hidden) in SIGMOID.items():
        for N, C, rows, dtype in cases:
            input, target = torch.randn(rows, C).to(dtype), torch.randint(0, 2, (rows, C)).to(dtype)
            _, log = sigmoid.loss(kind, input, target, grad=torch.empty_like(input))
            reads_of_targets = passes - 1
            print_row(row(name, N, C, rows, dtype, input, passes + reads_of_targets, hidden, log))


if __name__ == "__main__":
    main()
