"""The readers take CLUENER's JSON, JSON lines with spans and CoNLL columns, with errors that name file and line."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastloss.ner.data import Corpus, DataError, Sentence, Span, fingerprint, is_cluener, to_record
from fastloss.ner.readers import READERS, read_corpus, read_sentences
from fastloss.ner.readers.jsonl import parse_sentence

GOOD = {"text": "小李在青城路等小李", "label": {"name": {"小李": [[0, 1], [7, 8]]}, "address": {"青城路": [[3, 5]]}}}
SPANS = (Span("name", 0, 1), Span("address", 3, 5), Span("name", 7, 8))


def write(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def labelled(label, text="小李在青城路"):
    return {"text": text, "label": label}


def test_reads_spans_sorted_with_inclusive_ends(tmp_path):
    assert read_sentences(write(tmp_path / "train.json", GOOD)) == [Sentence(GOOD["text"], SPANS)]


def test_to_record_is_the_inverse_of_reading(tmp_path):
    (sentence,) = read_sentences(write(tmp_path / "train.json", GOOD))
    assert to_record(sentence) == GOOD


@pytest.mark.parametrize(
    "record",
    [
        {"spans": [{"start": 0, "end": 4, "label": "PER"}, {"start": 8, "end": 14, "type": "LOC"}]},
        {"entities": [[8, 14, "LOC"], [0, 4, "PER"]]},
        {"label": [[0, 4, "PER"], [8, 14, "LOC"]]},
    ],
)
def test_spans_with_exclusive_ends_are_read_in_each_usual_form(record):
    assert parse_sentence(json.dumps({"text": "Mary in London"} | record)) == Sentence(
        "Mary in London", (Span("PER", 0, 3), Span("LOC", 8, 13))
    )


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", {("PER", "ab c"), ("LOC", "ef")}),
        # IOB1 begins with I and uses B only between neighbours of one type.
        ("I-PER B-PER O I-LOC", {("PER", "ab"), ("PER", "c"), ("LOC", "ef")}),
        ("I-PER I-LOC O O", {("PER", "ab"), ("LOC", "c")}),
        ("B-PER E-PER O S-LOC", {("PER", "ab c"), ("LOC", "ef")}),
        ("B-PER L-PER O U-LOC", {("PER", "ab c"), ("LOC", "ef")}),
        ("B-PER M-PER E-PER S-PER", {("PER", "ab c d"), ("PER", "ef")}),
        ("S-PER I-PER O O", {("PER", "ab"), ("PER", "c")}),
        ("O O O O", set()),
    ],
)
def test_the_tag_schemes_mean_the_same_spans(tmp_path, tags, spans):
    words = zip(("ab", "c", "d", "ef"), tags.split(), strict=True)
    (sentence,) = read_sentences(write(tmp_path / "train.conll", *(f"{word}\tx {tag}" for word, tag in words)))
    assert sentence.text == "ab c d ef"
    assert {(span.type, sentence.text[span.start : span.end + 1]) for span in sentence.spans} == spans


def test_conll_words_get_spaces_and_characters_do_not(tmp_path, english_directory):
    corpus = read_corpus(english_directory)
    assert corpus.dev[0] == Sentence("Mary Poppins flew to London .", (Span("PER", 0, 11), Span("LOC", 21, 26)))
    assert [s.text[span.start : span.end + 1] for s in corpus.dev[1:2] for span in s.spans] == [
        "Acme Corp",
        "John",
        "Paris",
    ]
    path = write(tmp_path / "dev.bio", "# id 3", "王 B-PER", "明 I-PER", "来 O", "了 O", "", "", "好 O")
    assert read_sentences(path) == [Sentence("王明来了", (Span("PER", 0, 1),)), Sentence("好")]


@pytest.mark.parametrize("line", ["word", "word X", "word B", "word B-", "word b-PER", "# comment B PER", "B-PER"])
def test_a_conll_line_without_a_tag_is_an_error_that_names_it(tmp_path, line):
    path = write(tmp_path / "train.txt", "good O", line)
    if line.startswith("#"):
        assert read_sentences(path) == [Sentence("good")]
    else:
        with pytest.raises(DataError, match=r"train\.txt, line 2: .* should be a word and, in the last column, a tag"):
            read_sentences(path)


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
        (labelled({"": {"小李": [[0, 1]]}}), "'' is no name of a type"),
        (labelled({"name": [[0, 1]]}), "from surface to list"),
        (labelled({"name": {"小李": [0, 1]}}), "list of [start, end] integers"),
        (labelled({"name": {"小李": [[0, 1, 2]]}}), "list of [start, end] integers"),
        (labelled({"name": {"小李": [[False, True]]}}), "list of [start, end] integers"),
        (labelled({"name": {"小李": [[5, 6]]}}), "does not lie in the text, which has 6 characters"),
        (labelled({"name": {"小李": [[-6, 1]]}}), "does not lie in the text"),
        (labelled({"name": {"小李": [[1, 0]]}}), "does not lie in the text"),
        (labelled({"name": {"小李": [[0, 2]]}}), 'covers "小李在" in the text'),
        ({"text": "ab", "spans": [[0, 3, "PER"]]}, "does not lie in the text, which has 2 characters"),
        ({"text": "ab", "spans": [[0, 0, "PER"]]}, "does not lie in the text"),
        ({"text": "ab", "spans": [[0, 1]]}, "a span should be"),
        ({"text": "ab", "spans": [{"start": 0, "label": "PER"}]}, "a span should be"),
        ('{"text": "\\ud800", "label": {}}', "\\ud800 is half of a surrogate pair"),
        ('{"text": "a", "label": {"\\udc00": {"a": [[0, 0]]}}}', "\\udc00 is half of a surrogate pair"),
        ('{"text": "a", "label": {"name": {"a": [[%s, 0]]}}}' % ("1" * 5000), "Exceeds the limit"),
        ("[" * 100_000, "nested too deeply"),
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
    with pytest.raises(DataError, match=r"holds no train file; it should be named train"):
        read_corpus(tmp_path)
    write(tmp_path / "train.json", "")
    with pytest.raises(DataError, match="holds no sentence"):
        read_corpus(tmp_path)
    write(tmp_path / "train.json", {"text": "", "label": {}}, {"text": "", "label": {}})
    with pytest.raises(DataError, match="holds 2 sentences, and the text of every one is empty"):
        read_corpus(tmp_path)
    (tmp_path / "train.json").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="is not UTF-8"):
        read_corpus(tmp_path)
    write(tmp_path / "train.txt", "a O")
    with pytest.raises(DataError, match=r"holds train\.json and train\.txt; there should be one"):
        read_corpus(tmp_path)


def test_unlabelled_lines_need_only_a_text(tmp_path):
    path = write(tmp_path / "test.json", {"id": 0, "text": "小李"})
    assert read_sentences(path, labelled=False) == [Sentence("小李")]


def test_the_fingerprint_sees_text_labels_and_parts():
    a, b = Sentence("ab", (Span("PER", 0, 0),)), Sentence("ab")
    prints = {fingerprint([a], [b]), fingerprint([b], [a]), fingerprint([a, b], []), fingerprint([b], [b])}
    assert len(prints) == 4
    assert not is_cluener(Corpus([a], [b]))


def test_cluener_is_recognised(cluener):
    corpus = read_corpus(cluener)
    assert is_cluener(corpus)
    assert not is_cluener(corpus._replace(dev=corpus.dev[1:]))


LINES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "spans", "a"]), inner)
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())


@given(st.sampled_from(sorted(READERS)), st.binary(max_size=200) | st.lists(LINES, max_size=3).map(b"\n".join))
@example(".json", b'{"text": "a", "label": {"b": {"a": [[0, 0]]}}}')
@example(".conll", b"a B-x\n\xe4\xbd\xa0 I-x\n")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path, suffix, raw):
    path = tmp_path / f"train{suffix}"
    path.write_bytes(raw)
    try:
        sentences = read_sentences(path)
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error).removeprefix(str(path))[:20]
        return
    for sentence in sentences:
        assert all(0 <= span.start <= span.end < len(sentence.text) for span in sentence.spans)
        sentence.text.encode()
