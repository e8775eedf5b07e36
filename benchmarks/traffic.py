"""Global memory traffic of the CUDA kernels, counted in the emulator, and the time that memory bandwidth allows for it.

    python benchmarks/traffic.py

Prints a Markdown table. Nothing is timed. Traffic is what the kernels ask for, in 32-byte sectors; what caches save is
not subtracted.
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "emulated"))
from emulator import EmulatedSigmoid, EmulatedSoftmax, import_ptxsim, moved_bytes

# TB/s, from NVIDIA's data sheets.
BANDWIDTH = {"A100 40 GB": 1.555, "H100 SXM": 3.35}
SHAPES = [(6400, 11), (4096, 1000), (64, 32768)]  # N × C: NER tags, image classes, a vocabulary
# Name, passes over the logits (the reads, and the write of the gradient), launches that the emulator's log leaves out.
SOFTMAX = {"cross_entropy": ("cross entropy", 2, 0), "focal_loss": ("focal", 2, 0), "ghmc_loss": ("GHM-C", 3, 1)}
SIGMOID = {"sigmoid_focal_loss": ("sigmoid focal", 2, 1), "sigmoid_ghmc_loss": ("sigmoid GHM-C", 3, 1)}

INTRODUCTION = """### Counted in emulation, not timed

Moved: bytes of global memory per byte of logits, with targets, losses, scratch and atomics. Ideal: the reads of the
logits (for the sigmoid losses, of the targets too) and the write of the gradient alone. Efficiency: the share of the
moved 32-byte sectors that is used, the worse of loads and stores, in the last kernel. Roofline: moved bytes over the
bandwidth, without launches and latency, for {bandwidths}.
"""


def row(name, input, ideal, hidden_launches, log):
    moved, last = moved_bytes(log), log[-1][-1]
    return [
        name,
        " × ".join(map(str, input.shape)),
        str(input.dtype).removeprefix("torch."),
        ideal,
        f"{moved / input.nbytes:.3f}",
        # Above 100%: threads of a warp that read the same address.
        f"{min(last.load_efficiency, last.store_efficiency, 1):.1%}",
        len(log) + hidden_launches,
        *(f"{moved / bandwidth / 1e6:.2f}" for bandwidth in BANDWIDTH.values()),
    ]


def print_row(cells):
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ptxsim = import_ptxsim()
    torch.manual_seed(0)
    print(INTRODUCTION.format(bandwidths=", ".join(f"{gpu} ({tb} TB/s)" for gpu, tb in BANDWIDTH.items())))
    head = ["loss", "N × C", "logits", "ideal", "moved", "efficiency", "launches"]
    print_row(head + [f"{gpu}, µs" for gpu in BANDWIDTH])
    print_row(["---"] * (len(head) + len(BANDWIDTH)))
    cases = list(itertools.product(SHAPES, (torch.float32, torch.bfloat16)))

    softmax = EmulatedSoftmax(ptxsim)
    for function, (name, passes, hidden) in SOFTMAX.items():
        for (N, C), dtype in cases:
            input, target = torch.randn(N, C).to(dtype), torch.randint(0, C, (N,))
            _, log = softmax.loss(function, input, target, grad=torch.empty_like(input))
            print_row(row(name, input, passes, hidden, log))

    sigmoid = EmulatedSigmoid(ptxsim)
    for function, (name, passes, hidden) in SIGMOID.items():
        for shape, dtype in cases:
            input, target = torch.randn(shape).to(dtype), torch.randint(0, 2, shape).to(dtype)
            _, log = sigmoid.loss(function, input, target, grad=torch.empty_like(input))
            reads_of_targets = passes - 1
            print_row(row(name, input, passes + reads_of_targets, hidden, log))


if __name__ == "__main__":
    main()
