"""The reader takes CLUENER's format, and nothing else, with errors that name the file and the line."""

import json

import pytest

from fastloss.ner.data import (
    TYPES,
    Corpus,
    DataError,
    Sentence,
    Span,
    count_types,
    describe,
    read_corpus,
    read_sentences,
    to_record,
    unseen_share,
)

GOOD = {"text": "小李在青城路等小李", "label": {"name": {"小李": [[0, 1], [7, 8]]}, "address": {"青城路": [[3, 5]]}}}


def write(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def labelled(label, text="小李在青城路"):
    return {"text": text, "label": label}


def test_reads_spans_sorted_with_inclusive_ends(tmp_path):
    (sentence,) = read_sentences(write(tmp_path / "train.json", GOOD))
    assert sentence.text == GOOD["text"]
    assert sentence.spans == (Span("name", 0, 1), Span("address", 3, 5), Span("name", 7, 8))


def test_to_record_is_the_inverse_of_reading(tmp_path):
    (sentence,) = read_sentences(write(tmp_path / "train.json", GOOD))
    assert to_record(sentence) == GOOD


def test_blank_lines_a_byte_order_mark_and_unicode_line_breaks_do_not_shift_offsets(tmp_path):
    record = labelled({"name": {"小李": [[1, 2]]}}, "\u2028小李")
    path = tmp_path / "train.json"
    path.write_text("\ufeff" + json.dumps(GOOD) + "\n\n" + json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    assert [len(sentence.spans) for sentence in read_sentences(path)] == [3, 1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": "小李", ', "this is not JSON"),
        ("[1, 2]", 'string under "text"'),
        ({"text": 3, "label": {}}, 'string under "text"'),
        ({"text": "小李"}, 'object under "label"'),
        (labelled({"planet": {"小李": [[0, 1]]}}), '"planet" is an unknown type'),
        (labelled({"name": [[0, 1]]}), "from surface to list"),
        (labelled({"name": {"小李": [0, 1]}}), "list of [start, end] integers"),
        (labelled({"name": {"小李": [[0, 1, 2]]}}), "list of [start, end] integers"),
        (labelled({"name": {"小李": [[False, True]]}}), "list of [start, end] integers"),
        (labelled({"name": {"小李": [[5, 6]]}}), "does not lie in the text, which has 6 characters"),
        (labelled({"name": {"小李": [[-6, 1]]}}), "does not lie in the text"),
        (labelled({"name": {"小李": [[1, 0]]}}), "does not lie in the text"),
        (labelled({"name": {"小李": [[0, 2]]}}), 'covers "小李在" in the text'),
    ],
)
def test_a_wrong_line_is_an_error_that_names_file_and_line(tmp_path, record, message):
    path = write(tmp_path / "dev.json", GOOD, record)
    with pytest.raises(DataError) as error:
        read_sentences(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_a_missing_directory_file_and_content_are_errors(tmp_path):
    with pytest.raises(DataError, match="is not a directory"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train\.json cannot be read: No such file"):
        read_corpus(tmp_path)
    write(tmp_path / "train.json", "")
    with pytest.raises(DataError, match="holds no sentence"):
        read_corpus(tmp_path)
    (tmp_path / "train.json").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="is not UTF-8"):
        read_corpus(tmp_path)


def test_unlabelled_lines_need_only_a_text(tmp_path):
    path = write(tmp_path / "test.json", {"id": 0, "text": "小李"})
    assert read_sentences(path, labelled=False) == [Sentence("小李")]


def test_counts_distinct_surfaces_and_mentions(tmp_path):
    distinct, mentions = count_types(read_sentences(write(tmp_path / "train.json", GOOD, GOOD)))
    assert (distinct["name"], distinct["address"]) == (2, 2)
    assert (mentions["name"], mentions["address"]) == (4, 2)


def test_describes_nesting_shared_edges_and_ambiguity():
    sentences = [
        Sentence("青城大学路", (Span("address", 0, 4), Span("organization", 0, 3), Span("scene", 1, 2))),
        Sentence("青城大学", (Span("company", 0, 3),)),
    ]
    facts = describe(sentences)
    assert (facts["sentences"], facts["characters"], facts["longest"]) == (2, 9, 5)
    assert facts["nested pairs"] == 3
    assert facts["spans sharing an edge"] == 1
    assert facts["start positions"] == 3 / 9
    assert facts["surfaces"] == 3
    assert facts["surfaces of several types"] == 1


def test_unseen_share_looks_at_surfaces_whatever_their_type():
    train = [Sentence("青城", (Span("address", 0, 1),))]
    dev = [Sentence("青城和白城", (Span("scene", 0, 1), Span("scene", 3, 4)))]
    assert unseen_share(Corpus(train, dev)) == 0.5


def test_cluener_has_its_published_counts(cluener):
    corpus = read_corpus(cluener)
    expected = {
        "train": (
            [2829, 1131, 2897, 2325, 1797, 1109, 3661, 3075, 3052, 1462],
            [2891, 1139, 2980, 2376, 1835, 1123, 3755, 3210, 3141, 1521],
        ),
        "dev": (
            [364, 152, 366, 287, 244, 150, 451, 344, 425, 199],
            [373, 154, 378, 295, 247, 151, 465, 367, 433, 209],
        ),
    }
    for part, counts in expected.items():
        for got, published in zip(count_types(getattr(corpus, part)), counts, strict=True):
            assert [got[type_] for type_ in TYPES] == published
    facts = describe(corpus.train)
    assert (facts["sentences"], facts["characters"], facts["longest"]) == (10748, 401764, 50)
    assert (facts["nested pairs"], facts["spans sharing an edge"]) == (2, 0)
    assert round(facts["start positions"], 3) == 0.060
    facts = describe(corpus.dev)
    assert (facts["sentences"], facts["nested pairs"], facts["spans sharing an edge"]) == (1343, 0, 0)
