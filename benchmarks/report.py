"""Turns pytest-benchmark's JSON files into Markdown tables, a bar chart and a verdict on every bar.

    python benchmarks/report.py runs/bench-*.json --output benchmarks

writes benchmarks/RESULTS.md and benchmarks/speed.png, prints the bars and fails if one is missed.
"""

import argparse
import json
import sys
from itertools import groupby
from math import prod
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from bars import AUTOGRAD, BARS, verdicts
from measure import FIRST_CALL


class Key(NamedTuple):
    device: str
    cpu_capability: str
    malloc: str
    threads: int
    dtype: str
    loss: str
    shape: tuple[int, ...]

    @property
    def shape_text(self):
        return "×".join(map(str, self.shape))


def load(paths: list[Path]) -> dict[Key, dict[str, float]]:
    """Median seconds of every contender of every case; of a case that several files have, the last file's."""
    measured = {}
    for path in paths:
        in_this_file = {}
        for benchmark in json.loads(path.read_text())["benchmarks"]:
            info = benchmark["extra_info"]
            key = Key(*(tuple(info[name]) if name == "shape" else info[name] for name in Key._fields))
            in_this_file.setdefault(key, {})[info["contender"]] = benchmark["stats"]["median"]
        measured |= in_this_file
    return measured


def versions(path: Path) -> str:
    content = json.loads(path.read_text())
    info, cpu = content["benchmarks"][0]["extra_info"], content["machine_info"]["cpu"]
    return f"fastloss {info['fastloss']}, torch {info['torch']}, {cpu['brand_raw']}, {cpu['count']} cores"


ELEMENT_SIZE = {"float32": 4, "bfloat16": 2}
OTHERS = "others' code"
COLUMNS = ["torch.compile", "eager", OTHERS, "fastloss", "fastloss in place", "fastloss bfloat16", "copy", "exp"]


def table(rows: list[tuple[Key, dict[str, float]]]) -> str:
    is_cpu = rows[0][0].device == "cpu"
    ratios = [
        "× torch.compile",
        "first calls",
        "× eager",
        *(["op / exp", "op / copy"] if is_cpu else ["GB/s", "% of copy"]),
    ]
    lines = ["| " + " | ".join(["loss", "N × C", *COLUMNS, *ratios]) + " |", "|---|---" + "|--:" * 13 + "|"]
    for key, seconds in rows:
        own, copy = seconds["fastloss"], seconds["copy"]
        cells = [key.loss, key.shape_text]
        others = [
            f"{name} {microseconds(seconds[name])}"
            for name in seconds
            if name not in COLUMNS and not name.endswith(FIRST_CALL)
        ]
        shown = {name: microseconds(value) for name, value in seconds.items()} | {OTHERS: ", ".join(others)}
        cells += [shown.get(column, "") for column in COLUMNS]
        first = seconds["torch.compile" + FIRST_CALL] / seconds["fastloss" + FIRST_CALL]
        cells += [f"{seconds['torch.compile'] / own:.2f}", f"{first:.2f}", f"{seconds['eager'] / own:.2f}"]
        if is_cpu:
            op = max(own - AUTOGRAD, 0)
            cells += [f"{op / seconds['exp']:.2f}", f"{op / copy:.2f}"]
        else:
            read_and_written = 2 * ELEMENT_SIZE[key.dtype] * prod(key.shape)
            cells += [f"{read_and_written / own * 1e-9:.0f}", f"{copy / own:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


INTRODUCTION = f"""\
Medians in µs of calls in turns within one run, smaller is better; `make bench` measures them anew. A turn is two calls:
the second one is shown, which finds its own code and data in the caches; *first calls* is the speed against
torch.compile in the first ones, which find there what the others left, as in the middle of a training step. *copy* is
`y.copy_(x)` and *exp* `torch.exp(x, out=y)` of the logits, *op* fastloss's call without {AUTOGRAD * 1e6:.0f} µs of
autograd and Python. torch.compile has the reference; eager is PyTorch's own function, or the reference where PyTorch
has none. *In place* is `inplace_backward=True`. Sigmoid focal loss is summed, as detectors do. *Recycled* memory has
been touched before (`MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=64000000000`); with the *default* malloc
a large tensor's page faults are part of each call."""


def markdown(measured: dict[Key, dict[str, float]], title: str) -> str:
    parts = ["# Forward + backward, measured", title, INTRODUCTION]
    for setting, rows in by_setting(measured):
        parts += [f"## {describe(setting)}", table(rows)]
    return "\n\n".join(parts) + "\n"


def by_setting(measured):
    """Cases of one device, instruction set, memory, thread count and precision together; the most usual first."""
    ordered = sorted(measured.items(), key=lambda item: item[0][:5], reverse=True)
    return [(setting, list(rows)) for setting, rows in groupby(ordered, key=lambda item: item[0][:5])]


def describe(setting) -> str:
    device, cpu_capability, malloc, threads, dtype = setting
    where = f"{cpu_capability}, {threads} thread{'s' * (threads > 1)}, {malloc} memory" if device == "cpu" else device
    return f"{dtype}, {where}"


def chart(measured: dict[Key, dict[str, float]], title: str, path: Path):
    """How many times faster than eager PyTorch, for the cases with a bar."""
    setting, rows = by_setting(measured)[0]
    rows = [(key, seconds) for key, seconds in rows if (key.loss, key.shape) in BARS]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.2), layout="constrained")
    series = {"torch.compile": "#9aa5b1", "fastloss": "#1f77b4", "fastloss in place": "#0b3c5d"}
    height = 0.8 / len(series)
    for i, (name, color) in enumerate(series.items()):
        speeds = [seconds["eager"] / seconds[name] for _, seconds in rows]
        positions = [row + (i - 1) * height for row in range(len(rows))]
        bars = axes.barh(positions, speeds, height, label=name, color=color)
        axes.bar_label(bars, [f"{speed:.1f}" for speed in speeds], padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [f"{key.loss}  {key.shape_text}" for key, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"times the speed of eager PyTorch, forward + backward\n{describe(setting)}; {title}", fontsize=8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=1.3 * axes.get_xlim()[1])
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+", type=Path, help="files that --benchmark-json wrote")
    parser.add_argument("--output", type=Path, help="folder for RESULTS.md and speed.png (default: only the bars)")
    arguments = parser.parse_args()
    measured = load(arguments.json)
    if arguments.output:
        title = versions(arguments.json[-1])
        (arguments.output / "RESULTS.md").write_text(markdown(measured, title))
        chart(measured, title, arguments.output / "speed.png")
    kept = True
    for ok, sentence in verdicts(measured):
        print("pass" if ok else "FAIL", sentence)
        kept = kept and ok
    sys.exit(not kept)


if __name__ == "__main__":
    main()
