"""Writes what a comparison found: a table for the terminal, and report.html, report.md and report.json."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import fastloss
from fastloss.ner import figures
from fastloss.ner.compare import write_json
from fastloss.ner.losses import has_bins
from fastloss.ner.summary import budget, headline, judge, ordered_pairs, signed, verdicts

# The article's table: bert-base-chinese on CLUENER, one run, seed 42; the types in this order, then F1.
ARTICLE_TYPES = (
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
)
ARTICLE = {
    "ce": (0.6568, 0.8119, 0.8240, 0.8306, 0.8154, 0.8200, 0.8790, 0.8182, 0.7991, 0.7042, 0.7993),
    "lsr": (0.6694, 0.8212, 0.8198, 0.8269, 0.8272, 0.8571, 0.8814, 0.8190, 0.8056, 0.7317, 0.8066),
    "focal": (0.6507, 0.8188, 0.8190, 0.8402, 0.8376, 0.8163, 0.8797, 0.8116, 0.8150, 0.7206, 0.8043),
    "ghmc": (0.6371, 0.8136, 0.8139, 0.8375, 0.8182, 0.8041, 0.8839, 0.8060, 0.8227, 0.7163, 0.7995),
}
ARTICLE_NOTE = "The article's table: bert-base-chinese on CLUENER, one run, seed 42"

Table = tuple[list[str], list[list[str]]]


def type_table(summary: dict[str, Any]) -> Table:
    """F1 per type and loss, mean over seeds; ± the deviation of F1 where there is one."""
    types = sorted(next(iter(summary["losses"].values()))["types"])
    rows = [
        [name, *(f"{loss['types'][type_]['f1']['mean']:.4f}" for type_ in types), plus_minus(loss["f1"])]
        for name, loss in summary["losses"].items()
    ]
    return ["loss", *types, "F1"], rows


def article_table(summary: dict[str, Any]) -> Table | None:
    """The article's rows, where the data is the article's."""
    if not summary["cluener"]:
        return None
    known = [name for name in summary["losses"] if name in ARTICLE]
    return ["loss", *ARTICLE_TYPES, "F1"], [[name, *(f"{cell:.4f}" for cell in ARTICLE[name])] for name in known]


def article_note(summary: dict[str, Any]) -> str:
    tiny = summary["settings"]["encoder"] == "tiny"
    return ARTICLE_NOTE + ("; another encoder than above." if tiny else ".")


def overall_table(summary: dict[str, Any]) -> Table:
    header = ["loss", "F1", "95% interval", "precision", "recall", "train F1", "ECE", "curve", "epochs"]
    if summary["cluener"]:
        header.insert(3, "official")
    rows = []
    for name, loss in summary["losses"].items():
        row = [name, plus_minus(loss["f1"]), f"{loss['f1']['low']:.4f} to {loss['f1']['high']:.4f}"]
        row += [f"{loss['official']['mean']:.4f}"] if summary["cluener"] else []
        row += [f"{loss[key]['mean']:.4f}" for key in ("precision", "recall", "train_f1", "ece")]
        rows.append([*row, loss["curve"], f"{loss['epochs']['mean']:.3g}"])
    return header, rows


def verdict_table(summary: dict[str, Any]) -> Table:
    rows = [
        [
            pair["a"],
            pair["b"],
            signed(pair["difference"]),
            f"{signed(pair['low'])} to {signed(pair['high'])}",
            f"{pair['adjusted_p']:.3f}",
            judge(pair, len(summary["seeds"])),
        ]
        for pair in ordered_pairs(summary)
    ]
    return ["ahead", "behind", "points of F1", "95% interval", "adjusted p", f"verdict ({budget(summary)})"], rows


def detail_table(loss: dict[str, Any], support: dict[str, Any]) -> Table:
    keys = ("precision", "recall", "f1")
    rows = [
        [type_, *(f"{scores[key]['mean']:.4f}" for key in keys), str(support.get(type_, 0))]
        for type_, scores in loss["types"].items()
    ]
    return ["type", "precision", "recall", "F1", "support"], rows


def error_table(summary: dict[str, Any]) -> Table:
    losses = summary["losses"]
    kinds = list(next(iter(losses.values()))["errors"])
    rows = [
        [
            name,
            *(f"{loss['errors'][kind]['mean']:.0f}" for kind in kinds),
            *(f"{loss['heads'][head]['mean']:.4f}" for head in ("start", "end")),
        ]
        for name, loss in losses.items()
    ]
    return ["loss", *kinds, "F1 of the start head", "of the end head"], rows


def noise_table(results: list[dict[str, Any]]) -> Table:
    """The gradient's noise after one epoch, and the range of the outliers' weights at the end, over batches."""
    rows = []
    for name, runs in figures.by_loss(results).items():
        noise = [run["early"]["noise"] for run in runs if run["early"]["noise"] is not None]
        outliers = [row[-1] for run in runs for row in run["late"]["weight"] if row[-1] is not None]
        rows.append(
            [
                name,
                f"{sum(noise) / len(noise):.2f}" if noise else "–",
                f"{min(outliers):.3g} to {max(outliers):.3g}" if outliers else "–",
            ]
        )
    return ["loss", "noise to signal", "weight at g ≥ 0.95, batch by batch"], rows


def plus_minus(value: dict[str, Any]) -> str:
    return f"{value['mean']:.4f}" + (f" ± {value['std']:.4f}" if value["std"] is not None else "")


def terminal_table(summary: dict[str, Any]) -> str:
    """The losses' rows and, for CLUENER, the article's below them."""
    header, ours = type_table(summary)
    article = article_table(summary)
    theirs = article[1] if article else []
    widths = [max(len(row[column]) for row in [header, *ours, *theirs]) for column in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells)

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(header), rule, *map(line, ours)]
    return "\n".join(lines + ([rule, *map(line, theirs), article_note(summary)] if article else []))


def markdown_table(table: Table) -> str:
    header, rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def time_sentence(results: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    losses = summary["losses"].values()
    times = [1e6 * loss["loss_seconds"]["mean"] for loss in losses]
    steps = [1e3 * loss["step"]["mean"] for loss in losses]
    shape = "{rows} × {classes}".format(**results[0]["loss_time"])
    return (
        f"The loss takes {min(times):.0f} to {max(times):.0f} µs (both heads of {shape} logits, forward and backward) "
        f"of a training step of {min(steps):.0f} to {max(steps):.0f} ms, so no loss is chosen for its speed."
    )


def draw(results: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Figure]:
    """Every figure of the report by its name."""
    drawn = {"f1": figures.f1_curves(results, summary), "intervals": figures.f1_intervals(summary)}
    if len(summary["losses"]) > 1:
        drawn["differences"] = figures.differences(summary)
    best = max(results, key=lambda result: result["metrics"]["micro"]["f1"])
    return drawn | {
        "losses": figures.loss_curves(results),
        "types": figures.type_heatmap(summary),
        "errors": figures.error_bars(summary),
        "confusion": figures.confusion(best),
        "gradient_norms": figures.gradient_norms(results),
        "effective_gradient": figures.effective_gradient(results),
        "bin_weights": figures.bin_weights(results),
        "reliability": figures.reliability(results),
    }


def breakable(name: str) -> Markup:
    """A loss's name, which may be broken after its punctuation only."""
    return Markup(re.sub("([:,])", r"\1<wbr>", str(escape(name))))


def mark_up(text: str, spans: list[Any]) -> list[tuple[str, str]]:
    """The text in pieces (text, type or nothing), for one colour per mention; of nested spans the outer one."""
    pieces, end = [], 0
    for type_, start, last in sorted(spans, key=lambda span: (span[1], -span[2])):
        if start >= end:
            pieces += [(text[end:start], ""), (text[start : last + 1], type_)]
            end = last + 1
    return [(piece, type_) for piece, type_ in [*pieces, (text[end:], "")] if piece]


def write_report(results: list[dict[str, Any]], summary: dict[str, Any], out: Path, data: str, command: str) -> None:
    """Writes report.html, which needs no other file, report.md with its figures beside it, and report.json."""
    drawn = {name: figures.svg(figure) for name, figure in draw(results, summary).items()}
    machine = {
        "torch": torch.__version__,
        "device": "CUDA" if torch.cuda.is_available() else "CPU",
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fastloss": fastloss.build_info(),
    }
    write_json(out / "report.json", {"command": command, "data": data, "machine": machine, **summary})
    (out / "figures").mkdir(exist_ok=True)
    for name, element in drawn.items():
        (out / "figures" / f"{name}.svg").write_text(figures.standalone(element), encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastloss.ner"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    context = {
        "summary": summary,
        "data": data,
        "command": command,
        "machine": machine,
        "headline": headline(summary),
        "verdicts": verdicts(summary),
        "verdict_table": verdict_table(summary),
        "budget": budget(summary),
        "overall": overall_table(summary),
        "types": type_table(summary),
        "article": article_table(summary),
        "article_note": article_note(summary),
        "details": {name: detail_table(loss, summary["support"]) for name, loss in summary["losses"].items()},
        "errors": error_table(summary),
        "noise": noise_table(results),
        "raising": raising_sentence(results),
        "time": time_sentence(results, summary),
        "worst": {name: runs[0]["errors"]["worst"] for name, runs in figures.by_loss(results).items()},
        "markdown": markdown_table,
        "mark_up": mark_up,
        "seconds": sum(result["seconds"] for result in results),
    }
    for name, drawings in (
        ("report.html", drawn),
        ("report.md", {name: f"figures/{name}.svg" for name in drawn}),
    ):
        text = environment.get_template(f"{name}.j2").render(**context, figures=drawings)
        (out / name).write_text(text, encoding="utf-8")


def raising_sentence(results: list[dict[str, Any]]) -> str:
    """What GHM-C does with outliers, where it was compared: the paper says that it damps them."""
    heaviest = {}
    for name, runs in figures.by_loss(results).items():
        weights = [row[-1] for run in runs for row in run["late"]["weight"] if row[-1] is not None]
        if has_bins(name) and weights:
            heaviest[name] = max(weights)
    if not heaviest:
        return ""
    listed = ", ".join(f"{name} up to × {weight:.3g}" for name, weight in heaviest.items())
    return (
        f"GHM-C raises the outliers (g ≥ 0.95) instead of damping them, since few decisions are in their bin: {listed} "
        "of cross entropy's gradient in a single batch."
    )
