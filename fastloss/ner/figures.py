"""The figures of a report, each narrow enough for a phone; lines and text take the colours of the page around them."""

import io
import re
import zlib
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastloss.ner.diagnosis import NONE
from fastloss.ner.losses import KINDS

# Stand-ins that an inline SVG has replaced by the page's own colours, so that light and dark both work.
INK, GRID = "#010203", "#030201"
# For losses with settings of their own; those without have theirs in the list of losses.
OTHERS = ("#c0392b", "#8a6d3b", "#5b8c2a", "#7a6fd0", "#c173b0", "#2aa5a0", "#9a9a3c")
WIDTH = 5.2
# The weights of every loss, and of every report, on one scale.
WEIGHTS = (1e-3, 1e3)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastloss",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)


def colour(loss: str) -> str:
    """A loss has the same colour in every figure of every report."""
    return KINDS[loss].colour if loss in KINDS else OTHERS[zlib.crc32(loss.encode()) % len(OTHERS)]


def svg(figure: Figure) -> str:
    """The figure as an SVG element that takes its colours from the page around it."""
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().replace(INK, "currentColor").replace(GRID, "var(--grid)")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text[text.index("<svg") :], count=1)


def standalone(element: str) -> str:
    """The same as a file of its own, dark on white."""
    return element.replace("<svg", '<svg style="background: #fff; color: #222; --grid: #ddd"', 1)


def drawing(draw: Callable[..., Any]) -> Callable[..., Any]:
    """A figure in our style, which pyplot does not keep."""

    def styled(*arguments: Any) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*arguments)
            plt.close(figure)
        return figure

    return styled


def by_loss(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {loss: [r for r in results if r["loss"] == loss] for loss in dict.fromkeys(r["loss"] for r in results)}


def curves(runs: list[dict[str, Any]], field: str) -> np.ndarray:
    """One row a seed, one column an epoch; the runs may have different lengths."""
    rows = [[epoch[field] for epoch in run["epochs"]] for run in runs]
    longest = max(map(len, rows))
    return np.array([row + [None] * (longest - len(row)) for row in rows], dtype=float)


def draw_band(axes: Axes, values: np.ndarray, **line: Any) -> None:
    """The mean over the seeds that got so far, and their range."""
    values = np.ma.masked_invalid(values)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(0), marker="o", markersize=3, **line)
    if len(values) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=line["color"], alpha=0.18, linewidth=0)


@drawing
def f1_curves(results: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for loss, runs in by_loss(results).items():
        state = summary["losses"][loss]["curve"]
        draw_band(axes, curves(runs, "f1"), color=colour(loss), label=f"{loss} ({state})")
    axes.set(title="Dev F1 by epoch (band: range over seeds)", xlabel="epoch", ylabel="micro F1")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def small_multiples(count: int, height: float = 1.7) -> tuple[Figure, Any]:
    """Axes two in a row; those that are too many are hidden."""
    rows = -(-count // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, height * rows + 0.5), squeeze=False)
    for unused in axes.flat[count:]:
        unused.set_visible(False)
    return figure, axes.flat


@drawing
def loss_curves(results: list[dict[str, Any]]) -> Figure:
    groups = by_loss(results)
    figure, axes = small_multiples(len(groups))
    for (loss, runs), panel in zip(groups.items(), axes, strict=False):
        draw_band(panel, curves(runs, "train_loss"), color=colour(loss), label="train")
        draw_band(panel, curves(runs, "dev_loss"), color=colour(loss), label="dev", linestyle="--")
        panel.set(title=loss, xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend()
    figure.suptitle("Loss by epoch, each on its own scale", fontsize=10, color=INK)
    return figure


def dot_plot(rows: list[tuple[str, float, float, float, str]], title: str, label: str) -> Figure:
    figure, axes = plt.subplots(figsize=(WIDTH, 0.34 * len(rows) + 1.1))
    for place, (_, value, low, high, shade) in enumerate(rows):
        axes.plot([low, high], [place, place], color=shade, linewidth=2)
        axes.plot(value, place, "o", color=shade, markersize=6)
    axes.set(title=title, xlabel=label, yticks=range(len(rows)), yticklabels=[row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    return figure


@drawing
def f1_intervals(summary: dict[str, Any]) -> Figure:
    rows = [(n, v["f1"]["mean"], v["f1"]["low"], v["f1"]["high"], colour(n)) for n, v in summary["losses"].items()]
    return dot_plot(rows, "Dev F1, mean over seeds and 95% interval", "micro F1")


@drawing
def differences(summary: dict[str, Any]) -> Figure:
    base = next(iter(summary["losses"]))
    rows = [
        (pair["b"], *(-100 * pair[key] for key in ("difference", "high", "low")), colour(pair["b"]))
        for pair in summary["pairs"]
        if pair["a"] == base
    ]
    figure = dot_plot(rows, f"Difference from {base}, 95% interval", "points of F1")
    figure.axes[0].axvline(0, color=INK, linewidth=0.8)
    return figure


def heatmap(axes: Axes, values: np.ndarray, form: str, cmap: str = "viridis") -> None:
    axes.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=max(float(np.nanmax(values)), 1e-9))
    bright = values > 0.6 * np.nanmax(values)
    for row, column in np.ndindex(values.shape):
        shade = "black" if bright[row, column] == (cmap == "viridis") else "white"
        axes.text(column, row, form.format(values[row, column]), ha="center", va="center", color=shade, fontsize=7)
    axes.grid(visible=False)


@drawing
def type_heatmap(summary: dict[str, Any]) -> Figure:
    """F1 by type, the types in the order of their support: where a loss helps the rare ones it shows on the right."""
    losses, support = summary["losses"], summary["support"]
    values = np.array([[losses[loss]["types"][type_]["f1"]["mean"] for loss in losses] for type_ in support])
    figure, axes = plt.subplots(figsize=(WIDTH, 0.28 * len(support) + 1.5))
    heatmap(axes, 100 * values, "{:.0f}")
    axes.set(title="F1 by type, the frequent ones first", yticks=range(len(support)), xticks=range(len(losses)))
    axes.set_yticklabels([f"{type_} ({count})" for type_, count in support.items()])
    axes.set_xticklabels([loss.replace(":", ":\n").replace(",", ",\n") for loss in losses])
    return figure


@drawing
def error_bars(summary: dict[str, Any]) -> Figure:
    losses = summary["losses"]
    kinds = list(next(iter(losses.values()))["errors"])
    figure, axes = plt.subplots(figsize=(WIDTH, 0.34 * len(losses) + 1.5))
    left = np.zeros(len(losses))
    for kind, shade in zip(kinds, plt.get_cmap("tab10").colors, strict=False):
        widths = np.array([loss["errors"][kind]["mean"] for loss in losses.values()])
        axes.barh(range(len(losses)), widths, left=left, label=kind, color=shade, height=0.65)
        left += widths
    axes.set(title="Errors by kind", xlabel="errors on dev, mean over seeds", yticks=range(len(losses)))
    axes.set_yticklabels(list(losses))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


@drawing
def confusion(result: dict[str, Any]) -> Figure:
    found = {name for *pair, _ in result["errors"]["confusion"] for name in pair}
    names = [*sorted(found - {NONE}), NONE]
    counts = np.zeros((len(names), len(names)), dtype=int)
    for gold, predicted, count in result["errors"]["confusion"]:
        counts[names.index(gold), names.index(predicted)] = count
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.3 * len(names) + 1.6))
    heatmap(axes, shares, "{:.0f}")
    axes.set(title=f"Types taken for one another, {result['loss']} (% of a row)", xlabel="predicted", ylabel="gold")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    return figure


@drawing
def gradient_norms(results: list[dict[str, Any]]) -> Figure:
    groups = by_loss(results)
    figure, axes = small_multiples(len(groups))
    for (loss, runs), panel in zip(groups.items(), axes, strict=False):
        for part, style in (("O", ":"), ("entity", "-")):
            counts = np.mean([run["gradient_norms"][part] for run in runs], axis=0)
            edges = np.linspace(0, 1, len(counts) + 1)
            panel.stairs(
                counts / max(counts.sum(), 1), edges, color=colour(loss), linestyle=style, linewidth=1.5, label=part
            )
        panel.set(title=loss, yscale="log", xlim=(0, 1), ylim=(1e-5, 1.5), xlabel="gradient norm g = 1 - p")
    axes[0].legend(loc="upper right")
    figure.suptitle("Share of dev's decisions by gradient norm", fontsize=10, color=INK)
    return figure


def bin_centres(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


@drawing
def effective_gradient(results: list[dict[str, Any]]) -> Figure:
    """What a loss makes of a decision's gradient, cross entropy being 1; dots have the area of their count."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    for loss, runs in by_loss(results).items():
        weights = np.array([row for run in runs for row in run["late"]["weight"]], dtype=float)
        counts = np.mean([run["late"]["count"] for run in runs], axis=0)
        mean = np.ma.masked_invalid(weights).mean(0).filled(np.nan)
        x = bin_centres(weights.shape[1])
        axes.plot(x, mean, color=colour(loss), linewidth=1.2, label=f"{loss} (outliers × {mean[-1]:.3g})")
        axes.scatter(x, mean, s=3 + 8 * np.log1p(counts), color=colour(loss), alpha=0.6, linewidth=0)
    axes.axvspan(0.95, 1, color=GRID, alpha=0.6, linewidth=0)
    axes.set(title="Gradient relative to cross entropy (shaded: outliers)", yscale="log", xlim=(0, 1.01), ylim=WEIGHTS)
    axes.set(xlabel="gradient norm g = 1 - p", ylabel="effective gradient / g")
    axes.legend()
    return figure


@drawing
def bin_weights(results: list[dict[str, Any]]) -> Figure:
    """The weight that the batches give the same gradient norm, one after another: what makes GHM-C's gradient noisy."""
    groups = by_loss(results)
    figure, axes = small_multiples(len(groups))
    for (loss, runs), panel in zip(groups.items(), axes, strict=False):
        weights = np.array(runs[0]["late"]["weight"], dtype=float)
        for low, style, alpha in ((0, ":", 0.7), (0.5, "--", 0.85), (0.95, "-", 1.0)):
            column = round(low * weights.shape[1])
            label = f"g in {low:g} to {low + 1 / weights.shape[1]:g}"
            panel.plot(weights[:, column], linestyle=style, alpha=alpha, color=colour(loss), linewidth=1, label=label)
        panel.set(title=loss, yscale="log", ylim=WEIGHTS, xlabel="batch")
    axes[0].legend(loc="upper right")
    figure.suptitle("Weight of a decision, batch by batch, after training", fontsize=10, color=INK)
    return figure


@drawing
def reliability(results: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    for loss, runs in by_loss(results).items():
        rows = runs[0]["calibration"]["bins"]
        x, y = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
        ece = np.mean([run["calibration"]["ece"] for run in runs])
        axes.plot(x, y, "-o", markersize=3.5, color=colour(loss), label=f"{loss} (ECE {ece:.3f})")
    axes.set(title="Reliability of the tags that were found", xlabel="confidence", ylabel="accuracy")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="lower right")
    return figure


@drawing
def against(
    rows: dict[str, list[tuple[float, float, float, float]]], title: str, label: str, ticks: list[str]
) -> Figure:
    """F1 per loss (mean, low, high) at each place of x."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for index, (loss, values) in enumerate(rows.items()):
        x, mean, low, high = (np.array(column) for column in zip(*values, strict=True))
        shift = 0.05 * (index - (len(rows) - 1) / 2)
        axes.vlines(x + shift, low, high, color=colour(loss), linewidth=1.2)
        axes.plot(x + shift, mean, "-o", markersize=4, color=colour(loss), label=loss)
    axes.set(title=title, xlabel=label, ylabel="micro F1", xticks=range(len(ticks)), xticklabels=ticks)
    axes.legend()
    return figure
