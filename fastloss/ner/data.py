"""Reads named-entity data in CLUENER's format, one JSON object a line, and counts what is in it."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TYPES = (
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
)


class DataError(ValueError):
    """A file that cannot be read as data; the message is a sentence that names the file and the line."""


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


def read_corpus(directory: str | Path) -> Corpus:
    """Reads `train.json` and `dev.json` of a directory in CLUENER's format."""
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; it should be one that holds train.json and dev.json.")
    return Corpus(read_sentences(directory / "train.json"), read_sentences(directory / "dev.json"))


def read_sentences(path: str | Path, labelled: bool = True) -> list[Sentence]:
    """Reads every line of a file, or raises DataError at the first that is wrong; nothing is half-read.

    With `labelled=False` a line needs only its text, as in CLUENER's test.json, and labels are not looked at.
    """
    path = Path(path)
    sentences = []
    try:
        # Only "\n" ends a line: the texts may hold other characters that Unicode counts as line breaks.
        with open(path, encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        sentences.append(parse_sentence(line, labelled))
                    except DataError as error:
                        raise DataError(f"{path}, line {number}: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}.") from None
    if not sentences:
        raise DataError(f"{path} holds no sentence; it should have one JSON object a line.")
    return sentences


def parse_sentence(line: str, labelled: bool = True) -> Sentence:
    """Turns one JSON line into a Sentence, or raises DataError with a sentence that says what is wrong."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"this is not JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise DataError('a line should be a JSON object with a string under "text".')
    text = record["text"]
    if not labelled:
        return Sentence(text)
    if not isinstance(record.get("label"), dict):
        raise DataError('a labelled line should have an object under "label".')
    spans = set()
    for type_, surfaces in record["label"].items():
        if type_ not in TYPES:
            raise DataError(f'"{type_}" is an unknown type; it should be one of {", ".join(TYPES)}.')
        if not isinstance(surfaces, dict):
            raise DataError(f'"{type_}" should hold an object from surface to list of [start, end].')
        for surface, offsets in surfaces.items():
            if not isinstance(offsets, list) or not all(is_offset_pair(pair) for pair in offsets):
                raise DataError(f'the offsets of "{surface}" should be a list of [start, end] integers.')
            for start, end in offsets:
                if not 0 <= start <= end < len(text):
                    raise DataError(
                        f'the span [{start}, {end}] of "{surface}" does not lie in the text, '
                        f"which has {len(text)} characters."
                    )
                if text[start : end + 1] != surface:
                    raise DataError(
                        f'the span [{start}, {end}] of "{surface}" covers "{text[start : end + 1]}" in the text.'
                    )
                spans.add(Span(type_, start, end))
    return Sentence(text, tuple(sorted(spans, key=lambda span: (span.start, span.end, span.type))))


def is_offset_pair(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def to_record(sentence: Sentence) -> dict:
    """The JSON object that `parse_sentence` reads back."""
    label: dict[str, dict[str, list[list[int]]]] = {}
    for span in sentence.spans:
        surface = sentence.text[span.start : span.end + 1]
        label.setdefault(span.type, {}).setdefault(surface, []).append([span.start, span.end])
    return {"text": sentence.text, "label": label}


def surfaces(sentence: Sentence) -> set[tuple[str, str]]:
    """The distinct (type, surface) pairs of a sentence."""
    return {(span.type, sentence.text[span.start : span.end + 1]) for span in sentence.spans}


def count_types(sentences: list[Sentence]) -> tuple[Counter, Counter]:
    """Per type: distinct surfaces per sentence (the figures usually published for CLUENER), and mentions."""
    distinct = Counter(type_ for sentence in sentences for type_, _ in surfaces(sentence))
    mentions = Counter(span.type for sentence in sentences for span in sentence.spans)
    return distinct, mentions


def describe(sentences: list[Sentence]) -> dict:
    """Sizes and properties of a set of sentences that decide how hard it is."""
    characters = sum(len(sentence.text) for sentence in sentences)
    types_of = defaultdict(set)
    for sentence in sentences:
        for type_, surface in surfaces(sentence):
            types_of[surface].add(type_)
    pairs = [(a, b) for sentence in sentences for a in sentence.spans for b in sentence.spans if a != b]
    return {
        "sentences": len(sentences),
        "characters": characters,
        "longest": max(len(sentence.text) for sentence in sentences),
        "start positions": sum(len({span.start for span in sentence.spans}) for sentence in sentences) / characters,
        "surfaces": len(types_of),
        "surfaces of several types": sum(len(types) > 1 for types in types_of.values()),
        "nested pairs": sum(a.start <= b.start and b.end <= a.end for a, b in pairs),
        "spans sharing an edge": sum(a < b and (a.start == b.start or a.end == b.end) for a, b in pairs),
    }


def unseen_share(corpus: Corpus) -> float:
    """The share of dev's mentions whose surface never occurs as an entity in train."""
    seen = {surface for sentence in corpus.train for _, surface in surfaces(sentence)}
    mentions = [sentence.text[span.start : span.end + 1] for sentence in corpus.dev for span in sentence.spans]
    return sum(surface not in seen for surface in mentions) / max(len(mentions), 1)
