"""One JSON object a line, with the mentions in one of two ways.

CLUENER's: `{"text": "...", "label": {TYPE: {SURFACE: [[start, end], ...]}}}`, both offsets inclusive.
Spans, as spaCy, Prodigy and doccano write them, the end exclusive:
`{"text": "...", "spans": [{"start": 0, "end": 4, "label": TYPE}]}`, or `[0, 4, TYPE]` for a span; the list may be
called spans, entities or label.
"""

import json
from pathlib import Path
from typing import Any

from fastloss.ner.data import DataError, Sentence, Span, make_sentence

SPAN_LISTS = ("spans", "entities", "label")


def read(path: Path, lines: list[str], labelled: bool) -> list[Sentence]:
    sentences = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                sentences.append(parse_sentence(line, labelled))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from None
    return sentences


def parse_sentence(line: str, labelled: bool = True) -> Sentence:
    """Turns one line into a Sentence, or raises DataError with a sentence that says what is wrong."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"this is not JSON ({error.msg} at column {error.colno}).") from None
    except RecursionError:
        raise DataError("this is not JSON that can be read: its brackets are nested too deeply.") from None
    except ValueError as error:
        raise DataError(f"this is not JSON that can be read: {str(error).split(';')[0]}.") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise DataError('a line should be a JSON object with a string under "text".')
    text = refuse_surrogates(record["text"])
    if not labelled:
        return Sentence(text)
    if isinstance(record.get("label"), dict):
        return make_sentence(text, parse_surfaces(text, record["label"]))
    for name in SPAN_LISTS:
        if isinstance(record.get(name), list):
            return make_sentence(text, [parse_span(text, value) for value in record[name]])
    raise DataError('a labelled line should have an object under "label", or a list of spans under "spans".')


def refuse_surrogates(text: str) -> str:
    """JSON can write half of a surrogate pair, which is no character and which no UTF-8 file can hold."""
    lone = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    if lone is not None:
        raise DataError(f"\\u{ord(lone):04x} is half of a surrogate pair; it should be a whole character.")
    return text


def parse_surfaces(text: str, label: dict[str, Any]) -> set[Span]:
    """The spans of CLUENER's label object; each surface has to be what its offsets cover."""
    spans = set()
    for type_, surfaces in label.items():
        check_type(type_)
        if not isinstance(surfaces, dict):
            raise DataError(f'"{type_}" should hold an object from surface to list of [start, end].')
        for surface, offsets in surfaces.items():
            refuse_surrogates(surface)
            if not isinstance(offsets, list) or not all(is_offset_pair(pair) for pair in offsets):
                raise DataError(f'the offsets of "{surface}" should be a list of [start, end] integers.')
            for start, end in offsets:
                check_offsets(text, start, end, f'of "{surface}"')
                if text[start : end + 1] != surface:
                    raise DataError(
                        f'the span [{start}, {end}] of "{surface}" covers "{text[start : end + 1]}" in the text.'
                    )
                spans.add(Span(type_, start, end))
    return spans


def parse_span(text: str, value: Any) -> Span:
    """One span of a list of spans; its end is exclusive."""
    if isinstance(value, dict):
        value = [value.get("start"), value.get("end"), value.get("label", value.get("type"))]
    if not (isinstance(value, list) and len(value) == 3 and is_offset_pair(value[:2]) and isinstance(value[2], str)):
        raise DataError(
            'a span should be {"start": 0, "end": 4, "label": "TYPE"} or [0, 4, "TYPE"], the end exclusive.'
        )
    start, end, type_ = value
    check_type(type_)
    check_offsets(text, start, end - 1, f"(end inclusive) of {type_}")
    return Span(type_, start, end - 1)


def check_type(type_: str) -> None:
    refuse_surrogates(type_)
    if not type_.strip() or not type_.isprintable():
        raise DataError(f"{type_!r} is no name of a type; it should be printable and not blank.")


def check_offsets(text: str, start: int, end: int, owner: str) -> None:
    if not 0 <= start <= end < len(text):
        raise DataError(
            f"the span [{start}, {end}] {owner} does not lie in the text, which has {len(text)} characters."
        )


def is_offset_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
