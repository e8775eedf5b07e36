"""Span scores: micro F1, per type, CLUENER's official score, and a paired bootstrap between losses."""

import numpy as np

from fastloss.ner.data import TYPES, Sentence, Span, surfaces

# Counts are triples (correct, predicted, gold).


def f1_score(correct, predicted, gold):
    """2 · correct / (predicted + gold), and 0 where there is nothing to find and nothing was found."""
    return 2 * correct / np.maximum(predicted + gold, 1)


def sentence_counts(sentences: list[Sentence], predictions: list[set[Span]]) -> np.ndarray:
    """Counts of exact spans per sentence and type, int64 (sentences, types, 3)."""
    counts = np.zeros((len(sentences), len(TYPES), 3), dtype=np.int64)
    for row, sentence, predicted in zip(counts, sentences, predictions, strict=True):
        gold = set(sentence.spans)
        for column, spans in enumerate((gold & predicted, predicted, gold)):
            for span in spans:
                row[TYPES.index(span.type), column] += 1
    return counts


def score(counts: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of one (correct, predicted, gold) triple."""
    correct, predicted, gold = (int(count) for count in counts)
    return {
        "precision": correct / max(predicted, 1),
        "recall": correct / max(gold, 1),
        "f1": float(f1_score(correct, predicted, gold)),
    }


def official_score(sentences: list[Sentence], predictions: list[set[Span]]) -> float:
    """CLUENER's official score: F1 over the distinct surface strings of each sentence, averaged over the types."""
    counts = np.zeros((len(TYPES), 3), dtype=np.int64)
    for sentence, predicted in zip(sentences, predictions, strict=True):
        gold_surfaces = surfaces(sentence)
        predicted_surfaces = surfaces(Sentence(sentence.text, tuple(predicted)))
        for column, pairs in enumerate((gold_surfaces & predicted_surfaces, predicted_surfaces, gold_surfaces)):
            for type_, _ in pairs:
                counts[TYPES.index(type_), column] += 1
    return float(f1_score(*counts.T).mean())


def evaluate_spans(sentences: list[Sentence], predictions: list[set[Span]]) -> dict:
    """All scores of a set of predictions; `micro` is the F1 of the article's table."""
    counts = sentence_counts(sentences, predictions)
    return {
        "micro": score(counts.sum((0, 1))),
        "types": {type_: score(row) for type_, row in zip(TYPES, counts.sum(0), strict=True)},
        "official": official_score(sentences, predictions),
    }


def paired_bootstrap(a: np.ndarray, b: np.ndarray, samples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Is loss A's micro F1 above loss B's, or is it chance?

    `a` and `b` are counts (seeds, sentences, 3) on the same sentences and seeds. Each sample draws sentences and
    seeds with replacement, the same for both, and takes the difference of the F1 averaged over the seeds.
    Returns the difference, its 95% interval and a two-sided p-value. With one seed only the choice of
    sentences varies, so the interval leaves out the variation between trainings.
    """
    rng = np.random.default_rng(seed)
    seeds, sentences, _ = a.shape

    def f1(counts, weights):
        totals = np.einsum("ws,ksc->wkc", weights, counts.astype(np.float64), optimize=True)
        return f1_score(*np.moveaxis(totals, -1, 0))  # (samples, seeds)

    observed = float((f1(a, np.ones((1, sentences))) - f1(b, np.ones((1, sentences)))).mean())
    sentence_weights = rng.multinomial(sentences, np.full(sentences, 1 / sentences), size=samples).astype(np.float64)
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples) / seeds
    differences = ((f1(a, sentence_weights) - f1(b, sentence_weights)) * seed_weights).sum(1)
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (tail + 1) / (samples + 1))
    return {"difference": observed, "low": float(low), "high": float(high), "p": float(p_value)}


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values, for several comparisons read off one table."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
