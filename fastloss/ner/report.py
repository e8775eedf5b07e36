"""Writes what a comparison found: a table for the terminal, report.md, report.json and four figures."""

import os
import platform
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import fastloss
from fastloss.ner.compare import summarize, write_json
from fastloss.ner.data import TYPES

# The article's table: bert-base-chinese on CLUENER, one run, seed 42; the types in TYPES' order, then F1.
ARTICLE = {
    "ce": (0.6568, 0.8119, 0.8240, 0.8306, 0.8154, 0.8200, 0.8790, 0.8182, 0.7991, 0.7042, 0.7993),
    "lsr": (0.6694, 0.8212, 0.8198, 0.8269, 0.8272, 0.8571, 0.8814, 0.8190, 0.8056, 0.7317, 0.8066),
    "focal": (0.6507, 0.8188, 0.8190, 0.8402, 0.8376, 0.8163, 0.8797, 0.8116, 0.8150, 0.7206, 0.8043),
    "ghmc": (0.6371, 0.8136, 0.8139, 0.8375, 0.8182, 0.8041, 0.8839, 0.8060, 0.8227, 0.7163, 0.7995),
}
REAL = "a real difference."
REAL_FOR_ONE_SEED = "more than the choice of dev sentences explains, but one training each."
HEADER = ["loss", *TYPES, "F1"]


def table_rows(summary: dict) -> list[list[str]]:
    """One row per loss in the article's column order, mean over seeds; ± the deviation of F1 where there is one."""
    rows = []
    for name, loss in summary["losses"].items():
        cells = [loss["types"][type_]["mean"] for type_ in TYPES]
        rows.append([name, *(f"{cell:.4f}" for cell in cells), plus_minus(loss["f1"])])
    return rows


def article_rows(summary: dict) -> list[list[str]]:
    return [[name, *(f"{cell:.4f}" for cell in ARTICLE[name])] for name in summary["losses"]]


def plus_minus(value: dict) -> str:
    return f"{value['mean']:.4f}" + (f" ± {value['std']:.4f}" if value["std"] is not None else "")


def article_note(data: str, encoder: str) -> str:
    note = "The article's table: bert-base-chinese on CLUENER, one run, seed 42"
    if data == "builtin":
        return note + "; other data than above, so not to be compared number by number."
    return note + ("; another encoder than above." if encoder == "tiny" else ".")


def terminal_table(summary: dict, data: str, encoder: str) -> str:
    """The losses' rows, and the article's below them."""
    ours, theirs = table_rows(summary), article_rows(summary)
    widths = [max(len(row[column]) for row in [HEADER, *ours, *theirs]) for column in range(len(HEADER))]

    def line(row):
        return "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(HEADER), rule, *map(line, ours), rule, *map(line, theirs), article_note(data, encoder)]
    return "\n".join(lines)


def verdicts(summary: dict) -> list[str]:
    """One sentence per pair of losses."""
    sentences = []
    for pair in summary["pairs"]:
        ahead, behind, sign = (pair["a"], pair["b"], 1) if pair["difference"] >= 0 else (pair["b"], pair["a"], -1)
        low, high = sorted((sign * pair["low"], sign * pair["high"]))
        sentences.append(
            f"{ahead} is {abs(pair['difference']):.4f} above {behind} "
            f"(95% interval {low:+.4f} to {high:+.4f}, adjusted p = {pair['adjusted_p']:.3f}): "
            + ("may be chance." if not pair["real"] else REAL if pair["seeds"] > 1 else REAL_FOR_ONE_SEED)
        )
    return sentences


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(results: list[dict], out: Path, data: str, command: str) -> dict:
    """Writes report.md, report.json and the figures into `out`; returns the summary."""
    out.mkdir(parents=True, exist_ok=True)
    summary = summarize(results)
    draw_curves(results, out / "curves.png")
    draw_gradient_norms(results, out / "gradient_norms.png")
    draw_effective_gradient(results, out / "effective_gradient.png")
    draw_loss_time(summary, out / "loss_time.png")
    machine = {
        "torch": torch.__version__,
        "device": results[0]["key"]["device"],
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "fastloss": fastloss.build_info(),
    }
    write_json(out / "report.json", {"command": command, "data": data, "machine": machine, **summary})
    (out / "report.md").write_text(markdown(results, summary, data, command, machine), encoding="utf-8")
    return summary


def markdown(results: list[dict], summary: dict, data: str, command: str, machine: dict) -> str:
    settings = results[0]["settings"]
    losses = summary["losses"].values()
    seeds = sorted({result["seed"] for result in results})
    sampling = (
        "sentences and seeds are resampled together"
        if len(seeds) > 1
        else "only sentences are resampled; with one seed nothing is known about the variation between trainings, "
        "so take small differences with care and add seeds"
    )
    overall = [
        [name, loss["title"], *(plus_minus(loss[k]) for k in ("precision", "recall", "f1", "official"))]
        for name, loss in summary["losses"].items()
    ]
    times = [
        [
            name,
            f"{loss['fused']['mean'] * 1e6:.0f} µs",
            f"{loss['reference']['mean'] * 1e6:.0f} µs",
            f"{loss['reference']['mean'] / loss['fused']['mean']:.1f}×",
            f"{loss['step']['mean'] * 1e3:.1f} ms",
        ]
        for name, loss in summary["losses"].items()
    ]
    rows = results[0]["loss_time"]["rows"]
    classes = results[0]["loss_time"]["classes"]
    return f"""# Losses compared on {data}

`{command}`

{len(losses)} losses, {len(seeds)} seed{"s" if len(seeds) > 1 else ""} ({", ".join(map(str, seeds))}), \
encoder {settings["encoder"]}, {settings["epochs"]} epochs, batch {settings["batch_size"]}, \
learning rate {settings["learning_rate"]:g}. Scores are of the last epoch, on the dev sentences.

## F1 per type

{markdown_table(HEADER, table_rows(summary))}

{article_note(data, settings["encoder"])}

{markdown_table(HEADER, article_rows(summary))}

## Overall

The official score is CLUENER's: distinct surface strings of each sentence, F1 averaged over the types.

{markdown_table(["loss", "", "precision", "recall", "micro F1", "official"], overall)}

## Which differences are real

Paired bootstrap of micro F1, 10,000 samples: {sampling}. p-values are adjusted for the number of pairs (Holm).

{chr(10).join("- " + sentence for sentence in verdicts(summary)) or "One loss only: nothing to compare."}

## Curves

![loss and F1 per epoch](curves.png)

Each loss is on its own scale: focal and GHM-C weigh decisions down, so their values are not comparable.

## Gradient norms

![distribution of gradient norms](gradient_norms.png)

How many of dev's start and end decisions each trained model leaves at gradient norm g = 1 - p.

![effective gradient](effective_gradient.png)

What gradient each loss makes of a decision whose gradient under cross entropy has norm g (the GHM paper's figure),
measured on the dev decisions of the first seed's models, all in one batch.

## Time in the loss

Both heads, forward and backward, on a batch's logits ({rows} × {classes}), median of 50.

{markdown_table(["loss", "fused", "reference", "speed-up", "whole training step"], times)}

![time in the loss](loss_time.png)

## Machine

{machine["device"]}, {machine["processor"]}, {machine["cpus"]} CPUs, torch {machine["torch"]}; fastloss: \
{", ".join(f"{key} {value}" for key, value in machine["fastloss"].items())}.
"""


def seeds_mean(results: list[dict], loss: str, pick) -> np.ndarray:
    return np.mean([pick(result) for result in results if result["loss"] == loss], axis=0)


def loss_names(results: list[dict]) -> list[str]:
    return list(dict.fromkeys(result["loss"] for result in results))


def save_figure(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(results: list[dict], path: Path) -> None:
    """Loss (training solid, dev dashed) and dev F1 per epoch, mean over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for index, loss in enumerate(loss_names(results)):
        epochs = [entry["epoch"] for entry in results[0]["epochs"]]
        for field, style in (("train_loss", "-"), ("dev_loss", "--")):
            values = seeds_mean(results, loss, lambda r, field=field: [entry[field] for entry in r["epochs"]])
            left.plot(epochs, values, style, color=f"C{index}", label=loss if field == "train_loss" else None)
        f1 = seeds_mean(results, loss, lambda r: [entry["f1"] for entry in r["epochs"]])
        right.plot(epochs, f1, "-o", markersize=3, color=f"C{index}", label=loss)
    left.set(xlabel="epoch", ylabel="loss (dashed: dev)", yscale="log")
    right.set(xlabel="epoch", ylabel="dev micro F1")
    left.legend()
    right.legend()
    save_figure(figure, path)


def draw_gradient_norms(results: list[dict], path: Path) -> None:
    """Share of decisions per bin of gradient norm, on a log scale: most are easy and a few very hard."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for loss in loss_names(results):
        counts = seeds_mean(results, loss, lambda r: r["gradient"]["counts"])
        axes.stairs(counts / counts.sum(), np.linspace(0, 1, len(counts) + 1), label=loss, linewidth=1.5)
    axes.set(xlabel="gradient norm g = 1 - p", ylabel="share of decisions", yscale="log", xlim=(0, 1))
    axes.legend()
    save_figure(figure, path)


def draw_effective_gradient(results: list[dict], path: Path) -> None:
    """Effective gradient against gradient norm, for the first seed's models."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for loss in loss_names(results):
        gradient = next(result["gradient"] for result in results if result["loss"] == loss)
        axes.plot(gradient["norm"], gradient["effective"], label=loss)
    axes.set(xlabel="gradient norm g = 1 - p", ylabel="effective gradient", yscale="log", xlim=(0, 1))
    axes.legend()
    save_figure(figure, path)


def draw_loss_time(summary: dict, path: Path) -> None:
    """Microseconds per step in the loss, fused beside reference."""
    figure, axes = plt.subplots(figsize=(7, 4))
    names = list(summary["losses"])
    for offset, kind in ((-0.2, "fused"), (0.2, "reference")):
        values = [summary["losses"][name][kind]["mean"] * 1e6 for name in names]
        axes.bar_label(axes.bar(np.arange(len(names)) + offset, values, 0.4, label=kind), fmt="%.0f")
    axes.set(ylabel="µs per step in the loss", xticks=np.arange(len(names)), xticklabels=names)
    axes.legend()
    save_figure(figure, path)
