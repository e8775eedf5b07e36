"""Errors by kind, calibration, gradient norms and the weights of a batch, on cases worked out by hand."""

import numpy as np
import pytest
import torch

from fastloss.ner.data import Sentence, Span
from fastloss.ner.diagnosis import calibration, error_kind, errors, gradient_norms, head_scores, pair_up


@pytest.mark.parametrize(
    ("predicted", "kind"),
    [
        (("name", 2, 5), "start"),
        (("name", 3, 6), "end"),
        (("name", 2, 6), "both edges"),
        (("book", 3, 5), "type"),
        (("book", 3, 6), "type and edge"),
    ],
)
def test_a_wrong_span_is_wrong_in_one_way(predicted, kind):
    gold, found = Span("name", 3, 5), Span(*predicted)
    assert pair_up({gold}, {found}) == [(gold, found)]
    assert error_kind(gold, found) == kind


def test_errors_counted_by_hand():
    sentences = [
        Sentence("0123456789", (Span("a", 0, 2), Span("b", 4, 5), Span("a", 7, 8))),
        Sentence("0123"),
        Sentence("0123", (Span("a", 0, 1),)),
    ]
    # Sentence 0: an end too far, a span of another type, one missed. 1: one out of nothing. 2: right.
    predictions = [{Span("a", 0, 3), Span("a", 4, 5)}, {Span("b", 1, 2)}, {Span("a", 0, 1)}]
    found = errors(sentences, predictions)
    wanted = {"missed": 1, "spurious": 1, "start": 0, "end": 1, "both edges": 0, "type": 1, "type and edge": 0}
    assert found["kinds"] == wanted
    # The wrong end and the right span are both a for a; the type error is b for a.
    assert found["confusion"] == [["a", "a", 2], ["a", "none", 1], ["b", "a", 1], ["none", "b", 1]]
    assert [sentence["text"] for sentence in found["worst"]] == ["0123456789", "0123"]


def test_each_span_has_one_partner_the_one_it_overlaps_most():
    gold, near, far = Span("a", 0, 5), Span("b", 1, 5), Span("a", 0, 0)
    assert pair_up({gold}, {near, far}) == [(gold, near), (None, far)]
    assert pair_up({gold}, {gold}) == []


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def test_calibration_by_hand():
    # Tag 1 with confidence 0.8 three times, right twice: |2/3 - 0.8|. O with 0.9, right.
    logits = logits_of([0.2, 0.8], [0.2, 0.8], [0.2, 0.8], [0.9, 0.1]).reshape(2, 2, 2)
    target = torch.tensor([1, 1, 0, 0]).reshape(2, 2)
    found = calibration(logits, target)
    assert found["ece"] == pytest.approx(0.8 - 2 / 3, abs=1e-6)
    assert found["ece_all"] == pytest.approx((3 * (0.8 - 2 / 3) + 0.1) / 4, abs=1e-6)
    assert [row["count"] for row in found["bins"]] == [3]


def test_head_scores_and_gradient_norms_by_hand():
    logits = logits_of([0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.9, 0.1]).reshape(2, 2, 2)
    target = torch.tensor([[0, 1], [0, 1]])
    # Start: O right, one out of nothing. End: one right, one missed.
    assert head_scores(logits, target) == {"start": 0.0, "end": pytest.approx(2 / 3)}
    norms = gradient_norms(logits, target, bins=10)
    assert np.flatnonzero(norms["O"]).tolist() == [3, 6] or np.flatnonzero(norms["O"]).tolist() == [2, 6]
    assert sum(norms["O"]) == sum(norms["entity"]) == 2
