"""What a corpus is: sentences with the spans of their mentions; and what identifies and describes one."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple


class DataError(ValueError):
    """What a user's files or settings got wrong; the message is a sentence that says what it should be."""


class Span(NamedTuple):
    """One mention: its type and its first and last character, both inclusive."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """A text and its mentions, sorted by position."""

    text: str
    spans: tuple[Span, ...] = ()


class Corpus(NamedTuple):
    """The sentences to train on and the sentences to measure on."""

    train: list[Sentence]
    dev: list[Sentence]


# The fingerprint of CLUENER 2020's dev sentences. Its official score and the article's table are about them alone.
CLUENER_DEV = "b9dcbe0f77f0e132"


def make_sentence(text: str, spans: set[Span] | list[Span]) -> Sentence:
    """A sentence with its spans in order, each once."""
    return Sentence(text, tuple(sorted(set(spans), key=lambda span: (span.start, span.end, span.type))))


def fingerprint(*parts: list[Sentence]) -> str:
    """A short hash of every sentence and label."""
    digest = hashlib.sha256()
    for part in parts:
        for sentence in part:
            digest.update(json.dumps(to_record(sentence), ensure_ascii=False).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def is_cluener(corpus: Corpus) -> bool:
    return fingerprint(corpus.dev) == CLUENER_DEV


def types_of(*parts: list[Sentence]) -> tuple[str, ...]:
    """The types that occur, in alphabetical order."""
    return tuple(sorted({span.type for part in parts for sentence in part for span in sentence.spans}))


def to_record(sentence: Sentence) -> dict[str, Any]:
    """The JSON object of CLUENER's format that its reader reads back."""
    label: dict[str, dict[str, list[list[int]]]] = {}
    for span in sentence.spans:
        surface = sentence.text[span.start : span.end + 1]
        label.setdefault(span.type, {}).setdefault(surface, []).append([span.start, span.end])
    return {"text": sentence.text, "label": label}


def surfaces(sentence: Sentence) -> set[tuple[str, str]]:
    """The distinct (type, surface) pairs of a sentence."""
    return {(span.type, sentence.text[span.start : span.end + 1]) for span in sentence.spans}


def count_types(sentences: list[Sentence]) -> tuple[Counter[str], Counter[str]]:
    """Per type: distinct surfaces per sentence (the figures usually published for CLUENER), and mentions."""
    distinct = Counter(type_ for sentence in sentences for type_, _ in surfaces(sentence))
    mentions = Counter(span.type for sentence in sentences for span in sentence.spans)
    return distinct, mentions


def written_in_characters(sentences: list[Sentence]) -> bool:
    """Whether the texts have no spaces between words, like Chinese: then every character is a token of its own."""
    characters = sum(len(sentence.text) for sentence in sentences)
    spaces = sum(sentence.text.count(" ") for sentence in sentences)
    return spaces < 0.05 * characters


def first_line(error: Exception) -> str:
    """What somebody else's error says, short enough for a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
