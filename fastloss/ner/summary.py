"""Sums up the runs: means and intervals, which differences are more than chance, and whether they are settled."""

from itertools import combinations
from typing import Any

import numpy as np

from fastloss.ner.data import Corpus, count_types, is_cluener
from fastloss.ner.metrics import holm, interval, paired_bootstrap

# Points of F1 that the last quarter of a curve may gain over what came before and still count as flat.
FLAT = 0.005
FEWEST_EPOCHS = 4


def curve_state(result: dict[str, Any]) -> str:
    """flat, rising, or too short to tell.

    A run until flat is flat where its patience ended it and rising where the ceiling did. Else the best F1 of the last
    quarter of the epochs is compared with the best before.
    """
    settings, scores = result["settings"], [epoch["f1"] for epoch in result["epochs"]]
    if result["diverged"]:
        return "diverged"
    if settings["until_flat"]:
        return "flat" if len(scores) - result["best_epoch"] >= settings["patience"] else "rising"
    if len(scores) < FEWEST_EPOCHS:
        return "too short"
    last = max(1, len(scores) // 4)
    return "rising" if max(scores[-last:]) - max(scores[:-last]) > FLAT else "flat"


def summarize(results: list[dict[str, Any]], corpus: Corpus) -> dict[str, Any]:
    """Per loss the means over seeds, and for every two losses whether they differ."""
    losses = list(dict.fromkeys(result["loss"] for result in results))
    runs = {loss: [result for result in results if result["loss"] == loss] for loss in losses}
    counts = {loss: np.array([run["sentence_counts"] for run in runs[loss]]) for loss in losses}
    summary = {
        "settings": results[0]["settings"],
        "seeds": [run["seed"] for run in runs[losses[0]]],
        "cluener": is_cluener(corpus),
        "support": dict(sorted(count_types(corpus.dev)[1].items(), key=lambda item: -item[1])),
        "losses": {loss: summarize_loss(runs[loss], counts[loss]) for loss in losses},
    }
    pairs = []
    for a, b in combinations(losses, 2):
        settled = all(summary["losses"][loss]["curve"] == "flat" for loss in (a, b))
        pairs.append({"a": a, "b": b, "settled": settled, **paired_bootstrap(counts[a], counts[b])})
    for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["adjusted_p"] = adjusted
        pair["real"] = adjusted < 0.05
    return summary | {"pairs": pairs}


def summarize_loss(runs: list[dict[str, Any]], counts: np.ndarray) -> dict[str, Any]:
    def over_seeds(pick: Any) -> dict[str, Any]:
        values = [pick(run) for run in runs]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return {"mean": float(np.mean(values)), "std": deviation}

    states = [curve_state(run) for run in runs]
    low, high = interval(counts)
    metrics = {key: over_seeds(lambda run, key=key: run["metrics"]["micro"][key]) for key in ("precision", "recall")}
    types = runs[0]["metrics"]["types"]
    return metrics | {
        "title": runs[0]["title"],
        # The least settled of the seeds' curves.
        "curve": next(state for state in ("diverged", "too short", "rising", "flat") if state in states),
        "f1": over_seeds(lambda run: run["metrics"]["micro"]["f1"]) | {"low": low, "high": high},
        "official": over_seeds(lambda run: run["metrics"]["official"]),
        "train_f1": over_seeds(lambda run: run["train_f1"]),
        "heads": {head: over_seeds(lambda run, head=head: run["heads"][head]) for head in ("start", "end")},
        "types": {
            type_: {
                key: over_seeds(lambda run, type_=type_, key=key: run["metrics"]["types"][type_][key])
                for key in ("precision", "recall", "f1")
            }
            for type_ in types
        },
        "errors": {
            kind: over_seeds(lambda run, kind=kind: run["errors"]["kinds"][kind]) for kind in runs[0]["errors"]["kinds"]
        },
        "ece": over_seeds(lambda run: run["calibration"]["ece"]),
        "ece_all": over_seeds(lambda run: run["calibration"]["ece_all"]),
        "epochs": over_seeds(lambda run: len(run["epochs"])),
        "learning_rate": runs[0]["settings"]["learning_rate"],
        "seconds": over_seeds(lambda run: run["seconds"]),
        "step": over_seeds(lambda run: run["seconds"] / run["steps"]),
        "loss_seconds": over_seeds(lambda run: run["loss_time"]["seconds"]),
    }


def budget(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    seeds = plural(len(summary["seeds"]), "seed")
    return f"until flat, {seeds}" if settings["until_flat"] else f"{plural(settings['epochs'], 'epoch')}, {seeds}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def verdicts(summary: dict[str, Any]) -> list[str]:
    """One sentence per pair of losses, with its budget; none where no loss learnt anything."""
    sentences = []
    for pair in ordered_pairs(summary):
        ahead, behind, low, high = (pair[key] for key in ("a", "b", "low", "high"))
        sentences.append(
            f"{ahead} is {points(pair['difference'])} above {behind} "
            f"(95% interval {signed(low)} to {signed(high)}, adjusted p = {pair['adjusted_p']:.3f}; "
            f"{budget(summary)}): {judge(pair, len(summary['seeds']))}"
        )
    return sentences


def ordered_pairs(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs with the better loss first."""

    def turn(pair: dict[str, Any]) -> dict[str, Any]:
        if pair["difference"] >= 0:
            return pair
        turned = {"a": pair["b"], "b": pair["a"], "low": -pair["high"], "high": -pair["low"]}
        return pair | turned | {"difference": -pair["difference"]}

    return [] if nothing_found(summary) else [turn(pair) for pair in summary["pairs"]]


def judge(pair: dict[str, Any], seeds: int) -> str:
    if not pair["real"]:
        verdict = "may be chance"
    elif seeds > 1:
        verdict = "a real difference"
    else:
        verdict = "more than the choice of dev sentences explains, but one training each"
    return verdict + ("." if pair["settled"] else " at this budget; not settled, a curve still rises or is too short.")


def points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def signed(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def nothing_found(summary: dict[str, Any]) -> bool:
    return all(loss["f1"]["mean"] == 0 for loss in summary["losses"].values())


def headline(summary: dict[str, Any]) -> str:
    """The whole comparison in a sentence: every loss against the first one."""
    losses = summary["losses"]
    if nothing_found(summary):
        return (
            f"Failure, not a tie: no loss finds a single mention ({budget(summary)}); train longer or look at the data."
        )
    base = next(iter(losses))
    if len(losses) == 1:
        return f"{base} has F1 {losses[base]['f1']['mean']:.3f} ({budget(summary)}, {losses[base]['curve']})."
    parts = []
    for pair in summary["pairs"]:
        if pair["a"] == base:
            difference = f"{pair['b']} {signed(-pair['difference'])}"
            parts.append(difference + ("" if pair["real"] else " (may be chance)"))
    unsettled = [name for name, loss in losses.items() if loss["curve"] != "flat"]
    state = f"not settled: {', '.join(unsettled)}" if unsettled else "settled"
    start = f"Against {base} ({losses[base]['f1']['mean']:.3f}), in points of F1"
    return f"{start}: {'; '.join(parts)}. {budget(summary)}, {state}."
