"""Trains every loss with every seed, keeps each result on disk as it is finished, and tunes learning rates."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastloss.ner.data import Corpus, fingerprint
from fastloss.ner.inference import is_main_process
from fastloss.ner.losses import Loss
from fastloss.ner.measure import measure, time_loss
from fastloss.ner.progress import Progress
from fastloss.ner.train import Settings, hold_out, train

# Raised when what a run file holds, or how it is measured, changes; older files are not reused.
FORMAT = 2


def run_key(corpus: Corpus, loss: Loss, seed: int, settings: Settings) -> dict[str, Any]:
    """Everything a result depends on; `--resume` reuses only a result whose key is equal."""
    return {
        "format": FORMAT,
        "loss": asdict(loss),
        "seed": seed,
        "settings": asdict(settings),
        "data": fingerprint(*corpus),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


@dataclass
class Runs:
    """The runs of a comparison: where their results lie, whether finished ones are reused, and the clock over all."""

    out: Path
    resume: bool
    progress: Progress
    tensorboard: bool = False

    def result(self, label: str, corpus: Corpus, loss: Loss, seed: int, settings: Settings) -> dict[str, Any]:
        """The result of one run: read back where it is finished and wanted, else trained and written at once."""
        path = self.out / "runs" / f"{label}.json"
        key = run_key(corpus, loss, seed, settings)
        result = read_result(path, key) if self.resume else None
        if result is not None:
            self.progress.skip(label, path)
            return result
        log = self.out / "tensorboard" / label if self.tensorboard else None
        run = train(corpus, loss, seed, settings, self.progress.begin(label), log)
        result = {
            "loss": loss.name,
            "title": loss.title,
            "seed": seed,
            "settings": asdict(settings),
            **measure(run),
            "loss_time": time_loss(loss, run.train_set, settings),
        }
        if is_main_process():
            write_json(path, {"key": key, "digest": digest(result), "result": result})
        return result


def compare(
    corpus: Corpus, losses: list[Loss], seeds: list[int], settings: Settings, rates: list[float], runs: Runs
) -> list[dict[str, Any]]:
    """One result per loss and seed. Every finished run is on disk before the next starts.

    Of several learning rates each loss gets the one that is best on a held-out part of train, with the first seed:
    losses differ in scale, and dev is for measuring alone.
    """
    best = {loss.name: rates[0] for loss in losses}
    if len(rates) > 1:
        best = {loss.name: tune(hold_out(corpus.train), loss, seeds[0], settings, rates, runs) for loss in losses}
    return [
        runs.result(f"{loss.slug}-seed{seed}", corpus, loss, seed, replace(settings, learning_rate=best[loss.name]))
        for seed in seeds
        for loss in losses
    ]


def tune(corpus: Corpus, loss: Loss, seed: int, settings: Settings, rates: list[float], runs: Runs) -> float:
    """The learning rate with the best F1 on `corpus.dev`, which is held out from train."""

    def f1(rate: float) -> float:
        label = f"tune-{loss.slug}-lr{rate:g}-seed{seed}"
        return runs.result(label, corpus, loss, seed, replace(settings, learning_rate=rate))["metrics"]["micro"]["f1"]

    return max(rates, key=f1)


def count_runs(losses: list[Loss], seeds: list[int], rates: list[float]) -> int:
    return len(losses) * (len(seeds) + (len(rates) if len(rates) > 1 else 0))


def digest(result: dict[str, Any]) -> str:
    """Tells a result that was written whole from one that was changed or cut."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def read_result(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The finished run of exactly this key, or None."""
    try:
        file = json.loads(path.read_bytes())
        return file["result"] if file["key"] == key and file["digest"] == digest(file["result"]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes beside the file and renames, so that an interruption leaves no half-written result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
