"""Trains every loss with every seed, keeps each result on disk as it is finished, and sums them up."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

import fastloss
import fastloss.reference
from fastloss.ner.data import TYPES, Corpus, to_record
from fastloss.ner.encode import NUM_TAGS
from fastloss.ner.metrics import holm, paired_bootstrap
from fastloss.ner.train import LOSSES, Settings, is_main_process, train


def fingerprint(corpus: Corpus) -> str:
    """A short hash of every sentence and label."""
    digest = hashlib.sha256()
    for part in corpus:
        for sentence in part:
            digest.update(json.dumps(to_record(sentence), ensure_ascii=False).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def run_key(corpus: Corpus, loss: str, seed: int, settings: Settings) -> dict:
    """Everything a result depends on; `--resume` reuses only a result whose key is equal."""
    return {
        "loss": loss,
        "function": LOSSES[loss].function,
        "options": LOSSES[loss].options,
        "seed": seed,
        "settings": asdict(settings),
        "data": fingerprint(corpus),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def compare(
    corpus: Corpus, losses: list[str], seeds: list[int], settings: Settings, out: Path, resume: bool
) -> list[dict]:
    """Returns one result per loss and seed, trained now or, with `resume`, read back from `out/runs`.

    Every finished run is on disk before the next starts, so an interruption loses only the run it hits.
    """
    results = []
    for seed in seeds:
        for loss in losses:
            path = out / "runs" / f"{loss}-seed{seed}.json"
            key = run_key(corpus, loss, seed, settings)
            finished = read_result(path, key) if resume else None
            if finished is not None:
                print(f"{loss:5} seed {seed}  kept from {path}", file=sys.stderr)
                results.append(finished)
                continue
            _, _, result = train(corpus, loss, seed, settings)
            result = {"key": key, **result, "loss_time": time_loss(loss, corpus, settings)}
            if is_main_process():
                write_json(path, result)
            results.append(result)
    return results


def read_result(path: Path, key: dict) -> dict | None:
    """The finished run of exactly this key, or None."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result["key"] == key else None


def write_json(path: Path, value) -> None:
    """Writes beside the file and renames, so that an interruption leaves no half-written result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def time_loss(loss: str, corpus: Corpus, settings: Settings) -> dict:
    """Seconds a training step spends in the loss: both heads, forward and backward, on a full batch's logits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = min(settings.max_length, 2 + round(sum(len(s.text) for s in corpus.train) / len(corpus.train)))
    rows = settings.batch_size * width
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(rows, NUM_TAGS, generator=generator).to(device).requires_grad_() for _ in range(2)]
    target = torch.randint(0, NUM_TAGS, (rows,), generator=generator).to(device)
    function, options = LOSSES[loss].function, LOSSES[loss].options
    times = {"rows": rows, "classes": NUM_TAGS}
    for label, module in (("fused", fastloss), ("reference", fastloss.reference)):
        times[label] = time_step(partial(getattr(module, function), **options), logits, target)
    return times


def time_step(loss: Callable, logits: list[torch.Tensor], target: torch.Tensor, repeats: int = 50) -> float:
    """The median over repeats."""

    def step() -> float:
        began = time.perf_counter()
        for x in logits:
            x.grad = None
        (loss(logits[0], target, reduction="sum") + loss(logits[1], target, reduction="sum")).backward()
        if logits[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(5):
        step()
    return float(np.median([step() for _ in range(repeats)]))


def summarize(results: list[dict]) -> dict:
    """Per loss the mean and standard deviation over seeds, and for every two losses whether they differ."""
    losses = list(dict.fromkeys(result["loss"] for result in results))
    runs = {loss: [result for result in results if result["loss"] == loss] for loss in losses}
    pairs = []
    for a, b in combinations(losses, 2):
        counts_a, counts_b = (np.array([run["sentence_counts"] for run in runs[loss]]) for loss in (a, b))
        pairs.append({"a": a, "b": b, "seeds": len(counts_a), **paired_bootstrap(counts_a, counts_b)})
    for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["adjusted_p"] = adjusted
        pair["real"] = adjusted < 0.05
    return {"losses": {loss: summarize_loss(runs[loss]) for loss in losses}, "pairs": pairs}


def summarize_loss(runs: list[dict]) -> dict:
    def over_seeds(values: list[float]) -> dict:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return {"mean": float(np.mean(values)), "std": deviation}

    return {
        "title": LOSSES[runs[0]["loss"]].title,
        "seeds": [run["seed"] for run in runs],
        "f1": over_seeds([run["metrics"]["micro"]["f1"] for run in runs]),
        "precision": over_seeds([run["metrics"]["micro"]["precision"] for run in runs]),
        "recall": over_seeds([run["metrics"]["micro"]["recall"] for run in runs]),
        "official": over_seeds([run["metrics"]["official"] for run in runs]),
        "types": {type_: over_seeds([run["metrics"]["types"][type_]["f1"] for run in runs]) for type_ in TYPES},
        "seconds": over_seeds([run["seconds"] for run in runs]),
        "step": over_seeds([run["seconds"] / run["steps"] for run in runs]),
        "fused": over_seeds([run["loss_time"]["fused"] for run in runs]),
        "reference": over_seeds([run["loss_time"]["reference"] for run in runs]),
    }
