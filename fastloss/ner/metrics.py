"""Span scores: micro F1, per type, CLUENER's official score, and a paired bootstrap between losses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastloss.ner.data import Sentence, Span, surfaces

# Counts are triples (correct, predicted, gold).


def f1_score(correct: Any, predicted: Any, gold: Any) -> Any:
    """2 · correct / (predicted + gold), and 0 where there is nothing to find and nothing was found."""
    return 2 * correct / np.maximum(predicted + gold, 1)


def sentence_counts(sentences: list[Sentence], predictions: list[set[Span]]) -> np.ndarray:
    """Counts of exact spans per sentence, all types together, int64 (sentences, 3)."""
    counts = [
        (len(predicted.intersection(sentence.spans)), len(predicted), len(set(sentence.spans)))
        for sentence, predicted in zip(sentences, predictions, strict=True)
    ]
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def micro_f1(sentences: list[Sentence], predictions: list[set[Span]]) -> float:
    return float(f1_score(*sentence_counts(sentences, predictions).sum(0)))


def score(counts: np.ndarray) -> dict[str, Any]:
    """Precision, recall, F1 and support of one (correct, predicted, gold) triple."""
    correct, predicted, gold = (int(count) for count in counts)
    return {
        "precision": correct / max(predicted, 1),
        "recall": correct / max(gold, 1),
        "f1": float(f1_score(correct, predicted, gold)),
        "support": gold,
    }


def type_scores(
    sentences: list[Sentence], predictions: list[set[Span]], types: Sequence[str]
) -> dict[str, dict[str, Any]]:
    def of_type(sentence: Sentence, predicted: set[Span], type_: str) -> tuple[Sentence, set[Span]]:
        spans = tuple(span for span in sentence.spans if span.type == type_)
        return Sentence(sentence.text, spans), {span for span in predicted if span.type == type_}

    scores = {}
    for type_ in types:
        pairs = [of_type(*pair, type_) for pair in zip(sentences, predictions, strict=True)]
        scores[type_] = score(sentence_counts([gold for gold, _ in pairs], [found for _, found in pairs]).sum(0))
    return scores


def official_score(sentences: list[Sentence], predictions: list[set[Span]], types: Sequence[str]) -> float:
    """CLUENER's official score: F1 over the distinct surface strings of each sentence, averaged over the types."""
    counts = {type_: np.zeros(3, dtype=np.int64) for type_ in types}
    for sentence, predicted in zip(sentences, predictions, strict=True):
        gold_surfaces = surfaces(sentence)
        predicted_surfaces = surfaces(Sentence(sentence.text, tuple(predicted)))
        for column, pairs in enumerate((gold_surfaces & predicted_surfaces, predicted_surfaces, gold_surfaces)):
            for type_, _ in pairs:
                counts[type_][column] += 1
    return float(np.mean([f1_score(*row) for row in counts.values()]))


def evaluate_spans(sentences: list[Sentence], predictions: list[set[Span]], types: Sequence[str]) -> dict[str, Any]:
    """All scores of a set of predictions; `micro` is the F1 of the article's table."""
    return {
        "micro": score(sentence_counts(sentences, predictions).sum(0)),
        "types": type_scores(sentences, predictions, types),
        "official": official_score(sentences, predictions, types),
    }


def resample(counts: np.ndarray, sentence_weights: np.ndarray, seed_weights: np.ndarray) -> np.ndarray:
    """The F1 averaged over the seeds, of each resampling: counts (seeds, sentences, 3), weights (samples, ...)."""
    totals = np.einsum("ws,ksc->wkc", sentence_weights, counts.astype(np.float64), optimize=True)
    return (f1_score(*np.moveaxis(totals, -1, 0)) * seed_weights).sum(1)


def draw_weights(seeds: int, sentences: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resampling takes each sentence and, as a share, each seed."""
    rng = np.random.default_rng(seed)
    sentence_weights = rng.multinomial(sentences, np.full(sentences, 1 / sentences), size=samples).astype(np.float64)
    return sentence_weights, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples) / seeds


def interval(counts: np.ndarray, samples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the F1 averaged over the seeds, sentences and seeds drawn anew."""
    values = resample(counts, *draw_weights(len(counts), counts.shape[1], samples, seed))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def paired_bootstrap(a: np.ndarray, b: np.ndarray, samples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Is loss A's micro F1 above loss B's, or is it chance?

    `a` and `b` are counts (seeds, sentences, 3) on the same sentences and seeds. Each sample draws sentences and
    seeds with replacement, the same for both, and takes the difference of the F1 averaged over the seeds.
    Returns the difference, its 95% interval and a two-sided p-value. With one seed only the choice of
    sentences varies, so the interval leaves out the variation between trainings.
    """
    seeds, sentences, _ = a.shape
    once = np.ones((1, sentences)), np.full((1, seeds), 1 / seeds)
    weights = draw_weights(seeds, sentences, samples, seed)
    differences = resample(a, *weights) - resample(b, *weights)
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "difference": float((resample(a, *once) - resample(b, *once)).item()),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, 2 * (tail + 1) / (samples + 1))),
    }


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values, for several comparisons read off one table."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
