"""Characters and tokens keep the same positions, and tags turn back into the spans they came from."""

import numpy as np
import pytest
import torch

from fastloss.ner.data import TYPES, DataError, Sentence, Span
from fastloss.ner.encode import IGNORE, TAG_OF, EncodedSentences, Vocabulary, collate, split_text, tag, untag

A, B = TAG_OF["address"], TAG_OF["book"]


@pytest.fixture
def vocabulary():
    return Vocabulary.build([Sentence("我在青城我在青城ab")])


@pytest.mark.parametrize(
    ("starts", "ends", "spans"),
    [
        ([0, A, 0, 0], [0, 0, A, 0], [Span("address", 1, 2)]),
        # One character is its own end.
        ([0, A, 0, 0], [0, A, A, 0], [Span("address", 1, 1)]),
        # An end of another type in between does not close it.
        ([A, 0, 0, 0], [0, B, 0, A], [Span("address", 0, 3)]),
        # Ends before the start, and starts without an end, are nothing.
        ([0, 0, A, 0], [A, A, 0, 0], []),
        ([A, 0, 0, 0], [0, 0, 0, B], []),
        # Two starts may share the nearest end; nesting of two types works.
        ([A, A, 0, 0], [0, 0, A, 0], [Span("address", 0, 2), Span("address", 1, 2)]),
        ([A, B, 0, 0], [0, 0, B, A], [Span("address", 0, 3), Span("book", 1, 2)]),
        ([], [], []),
    ],
)
def test_a_start_pairs_with_the_nearest_end_of_its_type(starts, ends, spans):
    assert untag(starts, ends) == spans


def test_tags_and_back():
    spans = [Span(type_, 3 * i, 3 * i + i % 3) for i, type_ in enumerate(TYPES)]
    tags = tag(30, spans)
    assert tags[0] == tags[-1] == [IGNORE, IGNORE]
    assert untag(*zip(*tags[1:-1], strict=True)) == spans


def test_rare_and_unknown_characters_share_one_token(vocabulary):
    ids = vocabulary.encode("我a龙")
    assert len(ids) == 5
    assert ids[2] == ids[3] == vocabulary.ids["[UNK]"]
    assert ids[1] == vocabulary.ids["我"]


def test_every_character_is_one_token_whatever_it_is(vocabulary):
    text = "我 \t\u3000İ😀\u200b青"
    assert len(vocabulary.encode(text)) == len(text) + 2


def test_capitals_fall_back_to_lower_case():
    vocabulary = Vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "B"])
    assert vocabulary.encode("ABb")[1:-1] == [4, 6, 5]


def test_a_vocabulary_survives_saving(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    assert Vocabulary.from_pretrained(str(tmp_path)).tokens == vocabulary.tokens


def test_a_vocabulary_without_bert_tokens_is_an_error():
    with pytest.raises(DataError, match=r"no \[PAD\] token"):
        Vocabulary(["a", "b"])


def test_texts_are_cut_after_punctuation_where_there_is_some():
    assert split_text("短", 4) == [(0, "短")]
    assert split_text("一二，三四五", 4) == [(0, "一二，"), (3, "三四五")]
    assert split_text("一二三四五六七八九", 4) == [(0, "一二三四"), (4, "五六七八"), (8, "九")]


def test_long_sentences_come_back_whole(vocabulary):
    text = "我在青城。" * 5
    spans = tuple(Span("address", 5 * i + 2, 5 * i + 3) for i in range(5))
    data = EncodedSentences([Sentence("我"), Sentence(text, spans)], vocabulary, max_length=9)
    assert len(data) == 6
    batch = collate([data[i] for i in range(len(data))])
    assert data.decode(batch["labels"].numpy()) == [set(), set(spans)]


def test_padding_is_masked_and_ignored(vocabulary):
    data = EncodedSentences([Sentence("我在青城", (Span("address", 2, 3),)), Sentence("我")], vocabulary, 16)
    batch = collate([data[0], data[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 6)
    assert batch["labels"].shape == (2, 6, 2)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["labels"][0].tolist() == [[IGNORE] * 2, [0, 0], [0, 0], [A, 0], [0, A], [IGNORE] * 2]
    assert (batch["labels"][1] != IGNORE).nonzero()[:, 0].tolist() == [1, 1]
    assert batch["labels"].dtype == torch.int64


def test_predictions_on_padding_and_special_tokens_are_not_looked_at(vocabulary):
    data = EncodedSentences([Sentence("我")], vocabulary, 16)
    assert data.decode(np.array([[[A, A], [0, 0], [A, A], [A, A]]])) == [set()]
