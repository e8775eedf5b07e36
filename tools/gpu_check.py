"""Every check and figure that takes a GPU, in one command, without a network, in under 25 minutes.

    python tools/gpu_check.py [--out gpu-check] [--steps install tests ...] [--minutes 24]

Needs a Python with torch; nvcc, compute-sanitizer and ncu where there are such. Each step is a process with a time
limit of its own; what it has found is kept if it is cut off. Results: OUT/results.json, OUT/results.md, and a log a
step. Where there is no GPU, everything that can be is rehearsed on the CPU, with smaller shapes.

Wheels for a machine without a network are taken from --wheels (make gpu-wheels): pytest, hypothesis, ninja, setuptools
and fastloss. Where no wheel of fastloss suits, it is built for this GPU alone.
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [  # a step of training in each kernel's territory
    (6400, 11),  # NER
    (65536, 11),
    (1 << 20, 11),
    (8192, 1000),
    (4096, 4096),
    (2048, 32000),
    (16384, 131072),
    (4, 150, 128, 128),  # segmentation: classes with a stride
    (100000, 80),  # detection: sigmoid focal loss
]
SIGMOID_SHAPE = SHAPES[-1]
NOT_COMPILED = (16384, 131072)  # torch.compile would take long, and its memory twice
SANITIZERS = ["memcheck", "racecheck", "initcheck", "synccheck"]
METRICS = {  # of ncu
    "gpu__time_duration.sum": "us",
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_percent",
    "launch__registers_per_thread": "registers",
}


# ---- the steps; each runs in a process of its own and hands what it finds to save(), as often as it likes


def install(out, save, wheels):
    """pytest and fastloss into OUT/site: a wheel, or a build for this GPU alone."""
    site = out / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--upgrade", "--target", site]
    if wheels.exists():
        subprocess.run([*pip, "--find-links", wheels, "pytest", "hypothesis", "ninja", "setuptools"], check=True)
        if subprocess.run([*pip, "--find-links", wheels, "--no-deps", "fastloss"]).returncode == 0:
            return save({"fastloss": "wheel"})
    environment = dict(os.environ)
    if has_cuda():
        import torch

        environment |= {
            "FASTLOSS_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability()),
        }
    started = time.monotonic()
    command = [*pip, "--no-build-isolation", "--no-deps", ROOT]
    subprocess.run(command, check=True, env=environment)
    return save({"fastloss": f"built in {time.monotonic() - started:.0f} s"})


def environment(out, save, wheels):
    import torch

    import fastloss

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"processors": os.cpu_count(), "fastloss": fastloss.build_info(), "file": fastloss.__file__}
    if has_cuda():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
        found |= {"memory_gb": round(properties.total_memory / 2**30, 1), "l2_mb": properties.L2_cache_size / 2**20}
        found["driver"] = output_of("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader")
    for tool in ("nvcc", "ncu", "compute-sanitizer"):
        found[tool] = output_of(tool, "--version").strip().splitlines()[-1:] if shutil.which(tool) else None
    save(found)


def tests(out, save, wheels):
    """What only a GPU can show; then the equivalence and half-precision tests on it."""
    run_pytest(out, save, "tests/test_cuda.py", "tests/test_cuda_build.py", "-k", "not spills")


def equivalence(out, save, wheels):
    keyword = "cuda" if has_cuda() else "test_half"
    run_pytest(out, save, "tests/test_equivalence.py", "tests/test_half.py", "-k", keyword)


def sanitizer(tool):
    def step(out, save, wheels):
        command = [sys.executable, __file__, "--one-of-each"]
        if shutil.which("compute-sanitizer") and has_cuda():
            checker = ["compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=fastloss", "--error-exitcode", "9"]
            command = [*checker, *command]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(run.stdout)
        save({"sanitized": command[0] != sys.executable, "rc": run.returncode, "last": run.stdout.splitlines()[-12:]})
        sys.exit(run.returncode)

    return step


def timings(out, save, wheels):
    """Microseconds of loss and gradient, a graph replayed with nothing in the L2 cache, beside others' and a copy."""
    import torch

    found = []
    for shape in SHAPES if has_cuda() else map(smaller, SHAPES):
        for dtype in (torch.float32, torch.bfloat16):
            logits, target = make_inputs(shape, dtype)
            case = {"shape": "x".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch.")}
            case |= {
                "bytes": 2 * logits.nbytes + (target.nbytes if shape in (SIGMOID_SHAPE, smaller(SIGMOID_SHAPE)) else 0)
            }
            for name, step in contenders(shape, logits, target):
                try:
                    case[name] = replay_time(step)
                except Exception as error:  # of somebody else's code, or memory: the others go on
                    case[name] = None
                    case[f"{name} failed"] = f"{type(error).__name__}: {error}"[:300]
            found.append(case)
            save({"microseconds": found})
            print(case, flush=True)
            del logits, target
            if has_cuda():
                torch.cuda.empty_cache()


def wall_clock(out, save, wheels):
    """Microseconds a step of the smallest shape takes from Python, without a graph."""
    import torch

    logits, target = make_inputs(SHAPES[0], torch.float32)
    found = {}
    for name, step in contenders(SHAPES[0], logits, target):
        for _ in range(20):
            step()
        times = []
        for _ in range(7):
            synchronize()
            started = time.perf_counter()
            for _ in range(100):
                step()
            synchronize()
            times.append((time.perf_counter() - started) * 1e4)
        found[name] = round(median(times), 1)
        save({"microseconds": found})


def ncu(out, save, wheels):
    """The six kernels that take longest, with what ncu says of each."""
    command = [sys.executable, __file__, "--hot-kernels"]
    if not (shutil.which("ncu") and has_cuda()):
        subprocess.run(command, check=True)
        return save({"profiled": False})
    profiler = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "-k", "regex:softmax|sigmoid|scale|histogram"]
    profiler += ["--metrics", ",".join(METRICS)]
    run = subprocess.run([*profiler, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (out / "ncu.csv").write_text(run.stdout)
    lines = run.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        save({"profiled": False, "last": lines[-8:]})
        sys.exit("ncu measured nothing.")
    kernels = []
    for row in csv.DictReader(lines[start:]):
        if row["ID"]:  # not the line of units
            values = {short: float(row[long].replace(",", "")) for long, short in METRICS.items()}
            kernels.append(
                {"kernel": re.sub(r"fastloss::|\(.*", "", row["Kernel Name"]), "grid": row["Grid Size"], **values}
            )
    for kernel in kernels:
        kernel["us"] = round(kernel["us"] / 1000, 2)  # nanoseconds
    return save({"profiled": True, "kernels": sorted(kernels, key=lambda kernel: -kernel["us"])[:6]})


STEPS = {  # seconds that each may take
    "install": (install, 240),
    "environment": (environment, 60),
    "tests": (tests, 200),
    "equivalence": (equivalence, 240),
    **{tool: (sanitizer(tool), 100) for tool in SANITIZERS},
    "timings": (timings, 300),
    "wall_clock": (wall_clock, 60),
    "ncu": (ncu, 120),
}


# ---- what is run


def has_cuda():
    import torch

    return torch.cuda.is_available()


def synchronize():
    import torch

    if has_cuda():
        torch.cuda.synchronize()


def smaller(shape):
    return (min(shape[0], 512), min(shape[1], 2000), *(16 for _ in shape[2:]))


def make_inputs(shape, dtype):
    import torch

    device = "cuda" if has_cuda() else "cpu"
    torch.manual_seed(0)
    logits = torch.randn(shape, device=device, dtype=dtype).requires_grad_()
    if shape in (SIGMOID_SHAPE, smaller(SIGMOID_SHAPE)):
        return logits, (torch.rand(shape, device=device) < 0.02).to(dtype)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), device=device)


def contenders(shape, logits, target):
    """``(name, step)``: loss and gradient of each, and a copy of the logits."""
    import torch
    import torch.nn.functional as F

    import fastloss
    from fastloss import reference

    sigmoid = shape in (SIGMOID_SHAPE, smaller(SIGMOID_SHAPE))
    if sigmoid:

        def fused(x, t):
            return fastloss.sigmoid_focal_loss(x, t, reduction="sum")

        def eager(x, t):
            return reference.sigmoid_focal_loss(x, t, reduction="sum")
    else:
        fused, eager = fastloss.cross_entropy, F.cross_entropy

    def step_of(loss):
        return lambda: torch.autograd.grad(loss(logits, target), logits)

    output = torch.empty_like(logits)
    yield "copy", lambda: output.copy_(logits.detach())
    yield "fastloss", step_of(fused)
    yield "eager", step_of(eager)
    if shape != NOT_COMPILED:
        torch._dynamo.reset()
        yield "torch.compile", step_of(torch.compile(eager, dynamic=False))
    if not sigmoid and logits.dim() == 2 and has_cuda():
        with contextlib.suppress(ImportError):
            from triton_cross_entropy import loss_and_gradient

            yield "Triton", lambda: loss_and_gradient(logits.detach(), target)


def replay_time(step):
    """Median microseconds of a step, captured as a graph; before each replay other memory fills the L2 cache."""
    import torch

    flush = torch.empty(1 << (27 if has_cuda() else 22))
    if not has_cuda():
        times = []
        for i in range(4):
            flush.zero_()
            started = time.perf_counter()
            step()
            if i:
                times.append((time.perf_counter() - started) * 1e6)
        return round(median(times), 2)
    flush = flush.cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(25):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return round(median(times), 2)


def one_of_each():
    """One call of every schedule; says which, and fails if one has none."""
    import torch

    import fastloss
    from fastloss import _C
    from fastloss.autograd import schedule_of

    device = "cuda" if has_cuda() else "cpu"
    taken = set()

    def call(function, x, target, grad=True, **settings):
        x = x.detach().requires_grad_(grad)
        taken.add(schedule_of(function, x, target, **settings))
        loss = function(x, target, **settings)
        if grad:
            loss.backward(torch.rand_like(loss))

    # tiles; parts of warps, blocks, blocks whose rows fit shared memory in part; the same for positions, wide or not
    tiles = [(333, classes) for classes in (3, 7, 11, 15, 20, 30)]
    rows = [(99, 100), (40, 3001), (3, 70001)]
    positions = [(2, 11, 3, 37), (2, 11, 4, 32), (2, 2000, 3, 37), (2, 2000, 4, 32)]
    for shape in tiles + rows + positions:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            x = torch.randn(shape, device=device, dtype=dtype)
            target = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
            target[0] = -100
            for grad in (True, False):
                call(fastloss.cross_entropy, x, target, grad)
                call(fastloss.focal_loss, x, target, grad, reduction="none")
                call(fastloss.ghmc_loss, x, target, grad)
            call(fastloss.cross_entropy, x, target, label_smoothing=0.1)
            call(fastloss.cross_entropy, x.movedim(1, -1).contiguous().movedim(-1, 1), target, reduction="none")
            fastloss.gradient_norm_histogram(x, target)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        memory = torch.randn(5001, device=device, dtype=dtype)
        for x in (memory[:5000], memory[1:]):
            target = torch.randint(2, x.shape, device=device).to(dtype)
            for grad in (True, False):
                call(fastloss.sigmoid_focal_loss, x, target, grad)
                call(fastloss.sigmoid_ghmc_loss, x, target, grad)
    synchronize()
    print("\n".join(sorted(taken)))
    if device == "cuda":
        # A scaling is not asked for its schedule: reductions and layouts above take them all.
        missing = {name for name in _C.schedule_names()["cuda"] if " scale " not in name} - taken
        if missing:
            sys.exit(f"not taken: {', '.join(sorted(missing))}")


def hot_kernels():
    """A call at each large shape."""
    import torch

    for shape in [(1 << 20, 11), (8192, 1000), (4096, 4096), (2048, 32000), (4, 150, 128, 128), SIGMOID_SHAPE]:
        shape = shape if has_cuda() else smaller(shape)
        logits, target = make_inputs(shape, torch.float32)
        dict(contenders(shape, logits, target))["fastloss"]()
    synchronize()


# ---- the frame


def output_of(*command):
    with contextlib.suppress(OSError):
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()


def run_pytest(out, save, *arguments):
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=short", "--maxfail=25"]
    command = [sys.executable, "-P", "-m", "pytest", *options, *arguments]  # -P: not the sources' own fastloss
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(run.stdout)
    save({"rc": run.returncode, "last": [line for line in run.stdout.splitlines() if line][-12:]})
    sys.exit(run.returncode)


def run_step(name, out, wheels, seconds):
    """Runs a step in a process group of its own and returns how it went."""
    command = [sys.executable, __file__, "--step", name, "--out", out, "--wheels", wheels]
    # An empty path would be the folder that it was called from, with the sources' own fastloss.
    paths = [str(out / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.monotonic()
    with open(out / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            how = "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            how = f"cut off after {seconds:.0f} s"
            os.killpg(process.pid, 9)
            process.wait()
    return {"how": how, "seconds": round(time.monotonic() - started, 1)}


def report(out):
    """results.json and results.md from what every step has saved so far."""
    results = {name: json.loads(path.read_text()) for name in STEPS if (path := out / f"{name}.json").exists()}
    (out / "results.json").write_text(json.dumps(results, indent=1))
    lines = ["# What the GPU says", ""]
    found = results.get("environment", {})
    if "torch" in found:
        where = [found.get("gpu", "no GPU: a rehearsal on the CPU, with smaller shapes"), f"torch {found['torch']}"]
        lines += [
            ", ".join([*where, f"Python {found['python']}", f"fastloss {found['fastloss']['version']}"]) + ".",
            "",
        ]
    lines += table(["step", "how", "seconds"], [[name, r.get("how"), r.get("seconds")] for name, r in results.items()])
    cases = results.get("timings", {}).get("microseconds", [])
    if cases:
        names = ["copy", "fastloss", "eager", "torch.compile", "Triton"]
        rows = [
            [
                case["shape"],
                case["dtype"],
                *(case.get(name) for name in names),
                rate(case, "fastloss"),
                rate(case, "copy"),
            ]
            for case in cases
        ]
        lines += ["Loss and gradient in µs, graph replayed, L2 flushed; the bytes that have to be moved, in GB/s.", ""]
        lines += table(["N × C", "type", *names, "fastloss GB/s", "copy GB/s"], rows)
    wall = results.get("wall_clock", {}).get("microseconds", {})
    if wall:
        lines += ["A step from Python at 6400 × 11, float32, in µs, without a graph.", ""]
        lines += table(list(wall), [list(wall.values())])
    kernels = results.get("ncu", {}).get("kernels", [])
    if kernels:
        lines += ["The six hottest kernels by ncu.", "", *table(list(kernels[0]), [list(k.values()) for k in kernels])]
    (out / "results.md").write_text("\n".join(lines))


def rate(case, name):
    return round(case["bytes"] / case[name] / 1000) if case.get(name) else None


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join("–" if cell is None else str(cell) for cell in line) + " |" for line in lines), ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-check")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build/gpu-wheels")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS), metavar="STEP", help=" ".join(STEPS))
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--one-of-each", action="store_true", help="one call of every schedule, for a sanitizer")
    parser.add_argument("--hot-kernels", action="store_true", help="a call at each large shape, for a profiler")
    options = parser.parse_args()
    if options.one_of_each:
        return one_of_each()
    if options.hot_kernels:
        return hot_kernels()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    def save(name, found):
        path = out / f"{name}.json"
        path.with_suffix(".new").write_text(json.dumps(found))
        path.with_suffix(".new").replace(path)

    if options.step:
        return STEPS[options.step][0](out, lambda found: save(options.step, found), options.wheels.resolve())
    deadline = time.monotonic() + 60 * options.minutes
    failed = []
    for name in options.steps:
        (out / f"{name}.json").unlink(missing_ok=True)
        seconds = min(STEPS[name][1], deadline - time.monotonic())
        if seconds < 5:
            how = {"how": "no time left", "seconds": 0}
        else:
            how = run_step(name, out, options.wheels.resolve(), seconds)
        path = out / f"{name}.json"
        save(name, {**how, **(json.loads(path.read_text()) if path.exists() else {})})
        report(out)
        print(f"{name:12} {how['seconds']:6} s  {how['how']}", flush=True)
        failed += [name] * (how["how"] != "passed")
    print(f"{out / 'results.md'}")
    sys.exit(f"not passed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
