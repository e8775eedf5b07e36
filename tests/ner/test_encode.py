"""Texts and tokens keep the same positions, and tags turn back into the spans they came from."""

import numpy as np
import pytest
import torch

from fastloss.ner.data import Sentence, Span
from fastloss.ner.encode import IGNORE, EncodedSentences, collate, split_tokens, tag, untag
from fastloss.ner.tokens import train_tokenizer

TYPES = ["address", "book", "name"]
A, B = 1, 2


@pytest.fixture(scope="module")
def characters():
    return train_tokenizer([Sentence("我在青城。我在青城。ab")], characters=True)


@pytest.fixture(scope="module")
def words():
    return train_tokenizer([Sentence("Mary went to New-York, to see John's friends.")] * 2, characters=False)


@pytest.mark.parametrize(
    ("starts", "ends", "pairs"),
    [
        ([0, A, 0, 0], [0, 0, A, 0], [(A, 1, 2)]),
        # One token is its own end.
        ([0, A, 0, 0], [0, A, A, 0], [(A, 1, 1)]),
        # An end of another type in between does not close it.
        ([A, 0, 0, 0], [0, B, 0, A], [(A, 0, 3)]),
        # Ends before the start, and starts without an end, are nothing.
        ([0, 0, A, 0], [A, A, 0, 0], []),
        ([A, 0, 0, 0], [0, 0, 0, B], []),
        # Two starts may share the nearest end; nesting of two types works.
        ([A, A, 0, 0], [0, 0, A, 0], [(A, 0, 2), (A, 1, 2)]),
        ([A, B, 0, 0], [0, 0, B, A], [(A, 0, 3), (B, 1, 2)]),
        ([], [], []),
    ],
)
def test_a_start_pairs_with_the_nearest_end_of_its_type(starts, ends, pairs):
    assert untag(starts, ends) == pairs


def test_a_spans_tags_are_on_the_tokens_that_hold_its_first_and_last_character():
    offsets = [(0, 2), (2, 4), (5, 6), (6, 9)]
    spans = (Span("address", 0, 3), Span("book", 5, 8), Span("name", 4, 4))
    # Character 4 is in no token, so the last span is nowhere.
    assert tag(offsets, spans, {"address": A, "book": B, "name": 3}) == [[A, 0], [0, A], [B, 0], [0, B]]


def test_rare_and_unknown_characters_share_one_token(characters):
    ((ids, offsets),) = characters(["我a龙"])
    assert ids[1] == ids[2] == characters.unknown_id != ids[0]
    assert offsets == [(0, 1), (1, 2), (2, 3)]


def test_every_character_is_one_token_whatever_it_is(characters):
    text = "我 \t\u3000İ😀\u200b青"
    ((ids, offsets),) = characters([text])
    assert len(ids) == len(offsets) == len(text)


def test_words_and_their_parts_keep_their_place_in_the_text(words):
    text = "John's  friends went to New-York."
    ((ids, offsets),) = words([text])
    assert len(ids) == len(offsets)
    pieces = [text[start:end] for start, end in offsets]
    assert "".join(pieces) == text.replace(" ", "")
    assert "John" in pieces and "'" in pieces


def test_texts_are_cut_after_punctuation_else_between_words_else_anywhere():
    def cut(text, limit, offsets=None):
        offsets = offsets or [(i, i + 1) for i, c in enumerate(text) if c != " "]
        return [text[offsets[a][0] : offsets[b - 1][1]] for a, b in split_tokens(text, offsets, limit)]

    assert cut("短", 4) == ["短"]
    assert cut("一二，三四五", 4) == ["一二，", "三四五"]
    assert cut("一二三四五六七八九", 4) == ["一二三四", "五六七八", "九"]
    assert cut("ab cdef", 4) == ["ab", "cdef"]
    assert split_tokens("", [], 4) == [(0, 0)]


def test_long_sentences_come_back_whole(characters):
    text = "我在青城。" * 5
    spans = tuple(Span("address", 5 * i + 2, 5 * i + 3) for i in range(5))
    data = EncodedSentences([Sentence("我"), Sentence(text, spans), Sentence("")], characters, 9, TYPES)
    assert len(data) == 7
    assert data.round_trip() == [set(), set(spans), set()]
    batch = collate([data[i] for i in range(len(data))], characters.pad_id)
    assert data.decode(batch["labels"].numpy()) == [set(), set(spans), set()]


def test_what_two_pointers_cannot_hold_is_lost(words):
    text = "Mary went to New-York"
    crossing = (Span("name", 0, 8), Span("name", 0, 3), Span("address", 13, 20))
    data = EncodedSentences([Sentence(text, crossing)], words, 32, TYPES)
    # Two spans cannot share a start; the later one keeps it.
    assert data.round_trip() == [{Span("name", 0, 3), Span("address", 13, 20)}]


def test_types_that_the_model_does_not_know_are_no_tags(characters):
    data = EncodedSentences([Sentence("我在青城", (Span("planet", 2, 3),))], characters, 16, TYPES)
    assert data.tag_counts().tolist() == [8, 0, 0, 0]


def test_padding_is_masked_and_ignored(characters):
    data = EncodedSentences([Sentence("我在青城", (Span("address", 2, 3),)), Sentence("我")], characters, 16, TYPES)
    batch = collate([data[0], data[1]], pad_id=7)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 6)
    assert batch["labels"].shape == (2, 6, 2)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["input_ids"][1, 3:].tolist() == [7] * 3
    assert batch["labels"][0].tolist() == [[IGNORE] * 2, [0, 0], [0, 0], [A, 0], [0, A], [IGNORE] * 2]
    assert (batch["labels"][1] != IGNORE).nonzero()[:, 0].tolist() == [1, 1]
    assert batch["labels"].dtype == torch.int64


def test_predictions_on_padding_and_special_tokens_are_not_looked_at(characters):
    data = EncodedSentences([Sentence("我")], characters, 16, TYPES)
    assert data.decode(np.array([[[A, A], [0, 0], [A, A], [A, A]]])) == [set()]


def test_the_share_of_unknown_tokens(characters):
    data = EncodedSentences([Sentence("我龙龙青")], characters, 16, TYPES)
    assert data.unknown_share() == 0.5
