"""The losses against label noise (GHM-C's and smoothing's claim) and imbalance (focal's), on the builtin corpus."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastloss.ner import figures
from fastloss.ner.compare import write_json
from fastloss.ner.data import Corpus
from fastloss.ner.metrics import f1_score, interval
from fastloss.ner.report import markdown_table
from fastloss.ner.synthetic import RARE, generate, thin


class Condition(NamedTuple):
    """A share of wrong labels in train, and the share that is kept of train's sentences with a rare type."""

    noise: float
    kept: float

    @property
    def label(self) -> str:
        return f"noise-{self.noise:g}-thin-{self.kept:g}"


def study_corpora(noises: list[float], kept: list[float]) -> dict[Condition, Corpus]:
    """Noise without thinning and thinning without noise; what both lists begin from is there once."""
    conditions = dict.fromkeys(
        [*(Condition(noise, 1.0) for noise in noises), *(Condition(0.0, share) for share in kept)]
    )
    return {c: thin(generate(label_noise=c.noise), c.kept) for c in conditions}


def rare_f1(result: dict[str, Any]) -> float:
    """The mean F1 of the types that were thinned."""
    return float(np.mean([result["metrics"]["types"][type_]["f1"] for type_ in RARE]))


def f1_with_interval(results: list[dict[str, Any]]) -> tuple[float, float, float]:
    counts = np.array([result["sentence_counts"] for result in results])
    return (float(np.mean(f1_score(*counts.sum(1).T))), *interval(counts))


def rare_with_range(results: list[dict[str, Any]]) -> tuple[float, float, float]:
    scores = [rare_f1(result) for result in results]
    return float(np.mean(scores)), min(scores), max(scores)


def sweep(
    results: dict[Condition, list[dict[str, Any]]], conditions: list[Condition], value: Any
) -> dict[str, list[tuple[Any, ...]]]:
    """Per loss a row (place, mean, low, high) for each condition."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for place, condition in enumerate(conditions):
        for loss, runs in figures.by_loss(results[condition]).items():
            rows.setdefault(loss, []).append((place, *value(runs)))
    return rows


def sweep_table(rows: dict[str, list[tuple[Any, ...]]], ticks: list[str]) -> str:
    cells = [
        [loss, *(f"{mean:.3f} ({low:.3f} to {high:.3f})" for _, mean, low, high in row)] for loss, row in rows.items()
    ]
    return markdown_table((["loss", *ticks], cells))


def write_study(results: dict[Condition, list[dict[str, Any]]], out: Path, command: str) -> str:
    """Writes study.md, study.json and a figure for each sweep into `out`; returns the tables."""
    noisy = sorted(c for c in results if c.kept == 1.0)
    thinned = sorted((c for c in results if c.noise == 0.0), key=lambda c: -c.kept)
    sweeps = (
        ("noise", "F1 against label noise", noisy, f1_with_interval, [f"{c.noise:.0%} wrong" for c in noisy]),
        ("rare", f"F1 of {', '.join(RARE)}", thinned, rare_with_range, [f"{c.kept:.4g} kept" for c in thinned]),
    )
    sections = []
    for name, title, conditions, value, ticks in sweeps:
        rows = sweep(results, conditions, value)
        figure = figures.svg(figures.against(rows, title, "builtin corpus", ticks))
        (out / f"{name}.svg").write_text(figures.standalone(figure), encoding="utf-8")
        sections.append(f"## {title}\n\n{sweep_table(rows, ticks)}\n\n![{title}]({name}.svg)")
    text = "\n\n".join(["# Noise and imbalance, builtin corpus", f"`{command}`", *sections]) + "\n"
    (out / "study.md").write_text(text, encoding="utf-8")
    write_json(
        out / "study.json",
        {c.label: [{k: r[k] for k in ("loss", "seed", "metrics")} for r in runs] for c, runs in results.items()},
    )
    return text
