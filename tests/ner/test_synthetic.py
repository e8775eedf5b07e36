"""The builtin corpus is deterministic, imbalanced like CLUENER, ambiguous, and not learnt by heart."""

from collections import defaultdict

import pytest

from fastloss.ner.data import count_types, surfaces
from fastloss.ner.inspection import unseen_share
from fastloss.ner.synthetic import FREQUENCY, RARE, TYPES, generate, thin


@pytest.fixture(scope="module")
def corpus():
    return generate()


def test_the_same_arguments_give_the_same_corpus(corpus):
    assert generate() == corpus
    assert generate(seed=1) != corpus


def test_every_type_occurs_about_as_often_as_in_cluener(corpus):
    _, mentions = count_types(corpus.train)
    for type_ in TYPES:
        share, wanted = mentions[type_] / mentions.total(), FREQUENCY[type_] / sum(FREQUENCY.values())
        assert 0.8 < share / wanted < 1.25, type_


def test_spans_lie_in_order_and_do_not_overlap(corpus):
    for sentence in corpus.train:
        assert all(0 <= span.start <= span.end < len(sentence.text) for span in sentence.spans)
        assert all(a.end < b.start for a, b in zip(sentence.spans, sentence.spans[1:], strict=False))
        assert "{" not in sentence.text and "?" not in sentence.text


def test_the_same_surface_is_of_several_types_and_sometimes_of_none(corpus):
    types_of = defaultdict(set)
    for sentence in corpus.train:
        for type_, surface in surfaces(sentence):
            types_of[surface].add(type_)
    assert types_of["西湖"] >= {"address", "scene"}
    assert any({"book", "game", "movie"} & types and len(types) > 1 for types in types_of.values())
    unlabelled = [s for s in corpus.train if "西湖" in s.text and all("西湖" not in x for _, x in surfaces(s))]
    assert unlabelled


def test_most_of_devs_surfaces_are_new(corpus):
    assert 0.4 < unseen_share(corpus) < 0.8


def test_label_noise_spoils_that_share_of_trains_labels_and_none_of_devs():
    clean, noisy = generate(), generate(label_noise=0.2)
    assert noisy.dev == clean.dev
    assert [s.text for s in noisy.train] == [s.text for s in clean.train]
    total = sum(len(s.spans) for s in clean.train)
    kept = sum(len(set(a.spans) & set(b.spans)) for a, b in zip(clean.train, noisy.train, strict=True))
    dropped = total - sum(len(s.spans) for s in noisy.train)
    assert 1 - kept / total == pytest.approx(0.2, abs=0.02)
    assert dropped / total == pytest.approx(0.1, abs=0.02)


def test_thinning_keeps_that_share_of_the_sentences_with_rare_types_and_all_others(corpus):
    thinned = thin(corpus, 0.25)
    before, after = (count_types(part.train)[1] for part in (corpus, thinned))
    for type_ in RARE:
        assert after[type_] / before[type_] == pytest.approx(0.25, abs=0.07)
    others = [s for s in corpus.train if not any(span.type in RARE for span in s.spans)]
    assert [s for s in thinned.train if not any(span.type in RARE for span in s.spans)] == others
    assert thinned.dev == corpus.dev and thin(corpus, 1.0) == corpus
