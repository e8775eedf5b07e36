"""Span scores on cases counted by hand, and a bootstrap that tells real differences from chance."""

from itertools import product

import numpy as np
import pytest

from fastloss.ner.data import Sentence, Span
from fastloss.ner.metrics import evaluate_spans, holm, interval, paired_bootstrap, sentence_counts

TYPES = ("address", "book", "name", "scene")
SENTENCES = [
    Sentence("青城路青城路小李", (Span("address", 0, 2), Span("address", 3, 5), Span("name", 6, 7))),
    Sentence("无事发生"),
]


def test_scores_counted_by_hand():
    # Right: one address and the name. Wrong: an address as scene, a name out of nothing. Missed: one address.
    predictions = [{Span("address", 0, 2), Span("scene", 3, 5), Span("name", 6, 7)}, {Span("name", 0, 1)}]
    scores = evaluate_spans(SENTENCES, predictions, TYPES)
    assert scores["micro"] == {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "support": 3}
    assert scores["types"]["address"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert scores["types"]["name"]["f1"] == 2 / 3
    nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert scores["types"]["scene"] == scores["types"]["book"] == nothing
    # The official score sees one distinct address surface, found: address 1, name 2/3, and 0 for two others.
    assert scores["official"] == pytest.approx((1 + 2 / 3) / len(TYPES))


def test_a_wrong_edge_or_type_counts_twice():
    counts = sentence_counts(SENTENCES[:1], [{Span("address", 0, 1), Span("book", 3, 5)}])
    assert counts.tolist() == [[0, 2, 3]]


def test_nothing_found_and_nothing_there_is_not_a_division_by_zero():
    assert evaluate_spans([Sentence("无")], [set()], TYPES)["micro"]["f1"] == 0.0


def counts_with_recall(recall, seed, seeds=2, sentences=400):
    """Sentences with two gold spans each, found with this probability and never wrong."""
    correct = np.random.default_rng(seed).binomial(2, recall, size=(seeds, sentences))
    return np.stack([correct, correct, np.full_like(correct, 2)], axis=-1)


def test_the_bootstrap_draws_what_can_be_enumerated_by_hand():
    # One seed, two sentences of one gold span each: A finds both, B only the first and predicts as much.
    a = np.array([[[1, 1, 1], [1, 1, 1]]])
    b = np.array([[[1, 1, 1], [0, 1, 1]]])
    # Four equally likely draws of two sentences: (1,1), (1,2), (2,1), (2,2). F1 of A is 1 in each, of B 1, 1/2, 1/2, 0.
    by_hand = [1 - np.mean([(1, 0)[i] for i in draw]) for draw in product((0, 1), repeat=2)]
    assert sorted(by_hand) == [0, 0.5, 0.5, 1]
    result = paired_bootstrap(a, b, samples=20_000)
    assert result["difference"] == 0.5
    assert (result["low"], result["high"]) == (0.0, 1.0)
    # A quarter of the draws has no difference; two-sided that is a half.
    assert result["p"] == pytest.approx(2 * by_hand.count(0) / 4, abs=0.02)


def test_the_bootstrap_finds_a_large_difference_and_not_a_chance_one():
    good, also_good, bad = (counts_with_recall(*args) for args in ((0.8, 1), (0.8, 2), (0.6, 3)))
    real = paired_bootstrap(good, bad, samples=2000)
    assert real["difference"] > 0.1 and real["low"] > 0 and real["p"] < 0.01
    reverse = paired_bootstrap(bad, good, samples=2000)
    assert reverse["difference"] == -real["difference"] and reverse["high"] < 0
    chance = paired_bootstrap(good, also_good, samples=2000)
    assert chance["low"] < 0 < chance["high"] and chance["p"] > 0.05


def test_the_same_predictions_never_differ():
    counts = counts_with_recall(0.7, 1)
    same = paired_bootstrap(counts, counts, samples=200)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_the_bootstrap_is_deterministic():
    a, b = counts_with_recall(0.8, 1), counts_with_recall(0.78, 2)
    assert paired_bootstrap(a, b, samples=500) == paired_bootstrap(a, b, samples=500)


def test_the_interval_lies_around_the_mean_and_widens_where_seeds_disagree():
    steady = interval(counts_with_recall(0.7, 1, seeds=4))
    shaky = interval(np.concatenate([counts_with_recall(recall, 2, seeds=1) for recall in (0.5, 0.6, 0.8, 0.9)]))
    # Recall 0.7 at precision 1 is F1 1.4 / 1.7.
    assert steady[0] < 1.4 / 1.7 < steady[1]
    assert shaky[1] - shaky[0] > 2 * (steady[1] - steady[0])


def test_seeds_that_disagree_widen_the_interval_of_the_difference():
    steady = counts_with_recall(0.7, 1, seeds=4)
    shaky = np.concatenate([counts_with_recall(recall, 2, seeds=1) for recall in (0.5, 0.6, 0.8, 0.9)])
    reference = counts_with_recall(0.7, 3, seeds=4)
    width = [
        result["high"] - result["low"]
        for result in (
            paired_bootstrap(steady, reference, samples=1000),
            paired_bootstrap(shaky, reference, samples=1000),
        )
    ]
    assert width[1] > 2 * width[0]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
