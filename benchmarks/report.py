"""What was measured, kept as data, and everything that is written from it.

    python benchmarks/report.py runs/bench-*.json          prints the bars; fails if one is missed
    python benchmarks/report.py runs/bench-*.json --keep   puts them into benchmarks/data/ too, and writes the pages
    python benchmarks/report.py                            writes the pages from benchmarks/data/

The pages: benchmarks/RESULTS.md, benchmarks/speed.svg and the table in README.md. A file of data/ is a run: machine,
versions, commit and date, and of every contender of every case the quartiles of its calls.
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


HERE = Path(__file__).parent
DATA = HERE / "data"
Measured = dict[Key, dict[str, float]]


def condense(path: Path) -> dict:
    """What is kept of pytest-benchmark's JSON."""
    content = json.loads(path.read_text())
    machine, commit = content["machine_info"], content["commit_info"]
    cases = {}
    for benchmark in content["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        key = Key(*(tuple(info[name]) if name == "shape" else info[name] for name in Key._fields))
        cases.setdefault(key, {})[info["contender"]] = [stats["median"], stats["q1"], stats["q3"], stats["rounds"]]
    return {
        "date": content["datetime"],
        "commit": {name: commit[name] for name in ("id", "dirty")},
        "machine": {
            "cpu": machine["cpu"]["brand_raw"],
            "cores": machine["cpu"]["count"],
            "system": f"{machine['system']} {machine['release']}",
        },
        "versions": {"fastloss": info["fastloss"], "torch": info["torch"], "python": machine["python_version"]},
        "statistics": ["median", "first quartile", "third quartile", "calls"],
        "cases": [{**key._asdict(), "seconds": seconds} for key, seconds in cases.items()],
    }


def save(run: dict, path: Path):
    """A case a line."""
    cases = ",\n  ".join(json.dumps(case) for case in run["cases"])
    head = json.dumps({name: value for name, value in run.items() if name != "cases"}, indent=1)
    path.write_text(f'{head[:-2]},\n "cases": [\n  {cases}\n ]\n}}\n')


def medians(runs: list[dict]) -> Measured:
    """Of a case that several runs have, the last run's."""
    measured = {}
    for run in runs:
        for case in run["cases"]:
            key = Key(*(tuple(case[name]) if name == "shape" else case[name] for name in Key._fields))
            measured[key] = {contender: statistics[0] for contender, statistics in case["seconds"].items()}
    return measured


def kept_runs() -> list[dict]:
    """By date: where two have a case, the later one's counts."""
    return sorted((json.loads(path.read_text()) for path in DATA.glob("*.json")), key=lambda run: run["date"])


def title_of(runs: list[dict]) -> str:
    machine, versions = runs[-1]["machine"], runs[-1]["versions"]
    dates = sorted({run["date"][:10] for run in runs})
    commits = sorted({run["commit"]["id"][:9] + " and changes" * run["commit"]["dirty"] for run in runs})
    return (
        f"fastloss {versions['fastloss']} ({', '.join(commits)}), torch {versions['torch']}, {machine['cpu']}, "
        f"{machine['cores']} cores, {' to '.join(dates[:: max(len(dates) - 1, 1)])}"
    )


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
Written by benchmarks/report.py from benchmarks/data/.

Medians in µs of calls in turns within one run, smaller is better; `make bench` measures them anew. A turn is two calls:
the second one is shown, which finds its own code and data in the caches; *first calls* is the speed against
torch.compile in the first ones, which find there what the others left, as in the middle of a training step. *copy* is
`y.copy_(x)` and *exp* `torch.exp(x, out=y)` of the logits, *op* fastloss's call without {AUTOGRAD * 1e6:.0f} µs of
autograd and Python. torch.compile has the reference; eager is PyTorch's own function, or the reference where PyTorch
has none. *In place* is `inplace_backward=True`. Sigmoid focal loss is summed, as detectors do. *Recycled* memory has
been touched before (`MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=64000000000`); with the *default* malloc
a large tensor's page faults are part of each call."""


def markdown(measured: Measured, title: str) -> str:
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


def chart(measured: Measured, title: str, path: Path):
    """How many times faster than eager PyTorch, for the cases with a bar."""
    setting, rows = by_setting(measured)[0]
    order = list(BARS)
    rows = [(key, seconds) for key, seconds in rows if (key.loss, key.shape) in BARS]
    rows.sort(key=lambda row: order.index((row[0].loss, row[0].shape)))
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
    # Text as text: smaller, and the same bytes whatever draws it.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastloss"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


README_ROWS = [key for key in BARS if key != ("focal", (3001, 37))]
README_COLUMNS = ["eager", "torch.compile", "fastloss", "fastloss in place"]
MARKS = ("<!-- benchmarks/report.py writes from here", "<!-- to here -->")


def readme_table(measured: Measured, title: str) -> str:
    """The cases with a bar, in recycled memory; of the setting that comes first in RESULTS.md."""
    setting, rows = by_setting(measured)[0]
    lines = [
        "| loss | logits | " + " | ".join(README_COLUMNS) + " | against torch.compile (first calls) |",
        "|---|---" + "|--:" * (len(README_COLUMNS) + 1) + "|",
    ]
    for key, seconds in sorted(
        (row for row in rows if (row[0].loss, row[0].shape) in README_ROWS),
        key=lambda row: README_ROWS.index((row[0].loss, row[0].shape)),
    ):
        speed = seconds["torch.compile"] / seconds["fastloss"]
        first = seconds["torch.compile" + FIRST_CALL] / seconds["fastloss" + FIRST_CALL]
        cells = [key.loss, key.shape_text, *(microseconds(seconds[name]) for name in README_COLUMNS)]
        lines.append("| " + " | ".join([*cells, f"{speed:.1f} × ({first:.1f})"]) + " |")
    return f"Medians in µs, {describe(setting)};\n{title}.\n\n" + "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    begin, end = readme.index(MARKS[0]), readme.index(MARKS[1])
    return readme[: readme.index("\n", begin)] + f"\n\n{table}\n\n" + readme[end:]


def write_pages(runs: list[dict]):
    measured, title = medians(runs), title_of(runs)
    (HERE / "RESULTS.md").write_text(markdown(measured, title))
    chart(measured, title, HERE / "speed.svg")
    readme = HERE.parent / "README.md"
    readme.write_text(with_table(readme.read_text(), readme_table(measured, title)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="*", type=Path, help="files that --benchmark-json wrote")
    parser.add_argument("--keep", action="store_true", help="in benchmarks/data/, in place of the runs of that name")
    arguments = parser.parse_args()
    runs = [condense(path) for path in arguments.json]
    if arguments.keep:
        DATA.mkdir(exist_ok=True)
        for path, run in zip(arguments.json, runs, strict=True):
            save(run, DATA / path.name.removeprefix("bench-"))
    if arguments.keep or not runs:
        runs = kept_runs()
        write_pages(runs)
    all_kept = True
    for ok, sentence in verdicts(medians(runs)):
        print("pass" if ok else "FAIL", sentence)
        all_kept = all_kept and ok
    sys.exit(not all_kept)


if __name__ == "__main__":
    main()
