"""Time and memory of the losses fused with the last linear layer, each contender in fresh processes of its own.

    python benchmarks/linear.py                            # every case and contender
    python benchmarks/linear.py 4096x2048-32000 --only "fastloss chunked"

Memory is the peak resident set beyond what was resident before the first call, less the gradients that it leaves
behind. Time is the best of a few calls of forward and backward, with 2 threads and the system's malloc.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

import fastloss

SHAPES = {"4096x2048-32000": (4096, 2048, 32000), "2048x768-21128": (2048, 768, 21128)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def plain(loss):
    return lambda x, W, y: loss(F.linear(x, W), y)


def in_place(x, W, y):
    return fastloss.cross_entropy(F.linear(x, W), y, inplace_backward=True)


def torch_chunked(x, W, y):
    return F.linear_cross_entropy(x, W, y, options=torch.nn.LinearCrossEntropyOptions())


CONTENDERS = {
    "fastloss chunked": fastloss.linear_cross_entropy,
    "linear + fastloss": plain(fastloss.cross_entropy),
    "linear + fastloss in place": in_place,
    "torch, no options": F.linear_cross_entropy,
    "torch chunked": torch_chunked,
    "torch.compile": plain(F.cross_entropy),
    "focal chunked": fastloss.linear_focal_loss,
    "linear + focal": plain(fastloss.focal_loss),
    "GHM-C chunked": fastloss.linear_ghmc_loss,
    "linear + GHM-C": plain(fastloss.ghmc_loss),
}


def resident(which: str) -> int:
    """Bytes: now (VmRSS) or at their peak (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(which + ":"))


def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def one(shape: str, dtype: str, contender: str, ignored: float, rounds: int) -> dict:
    """Seconds of the best round; bytes of the first."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    N, H, C = SHAPES[shape]
    x = torch.randn(N, H, dtype=DTYPES[dtype]).requires_grad_()
    W = (torch.randn(C, H) * 0.02).to(DTYPES[dtype]).requires_grad_()
    y = torch.randint(C, (N,))
    y[torch.rand(N) < ignored] = -100
    function = CONTENDERS[contender]
    if contender == "torch.compile":
        function = torch.compile(function)
    small = [t[:64].detach().requires_grad_() for t in (x, W)]
    function(*small, torch.zeros(64, dtype=torch.int64)).backward()  # libraries, threads, their own memory
    if contender == "torch.compile":
        function(x, W, y)  # compiles for this shape, which takes memory too
    forget_peak()
    before, seconds = resident("VmRSS"), []
    for _ in range(rounds):
        x.grad = W.grad = None
        start = time.perf_counter()
        loss = function(x, W, y)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            extra = resident("VmHWM") - before - x.grad.nbytes - W.grad.nbytes
    return {"seconds": min(seconds), "MiB": round(extra / 2**20), "loss": loss.item()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--dtype", action="append", choices=list(DTYPES))
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--ignored", type=float, default=0.0, help="share of the rows")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", action="store_true", help="in this process")
    args = parser.parse_args()
    for shape in args.shapes:
        for dtype in args.dtype or DTYPES:
            for contender in args.only or CONTENDERS:
                if args.one:
                    print(json.dumps(one(shape, dtype, contender, args.ignored, args.rounds)))
                    continue
                command = [sys.executable, __file__, shape, "--one", "--dtype", dtype, "--only", contender]
                command += ["--ignored", str(args.ignored), "--rounds", str(args.rounds)]
                done = subprocess.run(command, capture_output=True, text=True)
                found = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-300:]}
                print(f"{shape} {dtype} {args.ignored:.0%} ignored  {contender:28}", found, flush=True)


if __name__ == "__main__":
    main()
