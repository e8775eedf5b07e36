"""CoNLL columns: a word and its tag a line, a blank line between sentences; IOB1, BIO, BIOES, BILOU or BMES tags.

The first column is the word and the last one the tag. `-DOCSTART-` lines and comments (`# ...` without a tag) are
skipped. Words are joined by spaces, except where they are single characters of a script without spaces.
"""

import re
from pathlib import Path
from typing import Any

from fastloss.ner.data import DataError, Sentence, Span, make_sentence
from fastloss.ner.readers.jsonl import check_type

TAG = re.compile(r"O|[BIOESLUM]-.+")
BEGINS, CONTINUES, CLOSES = "BSU", "IELM", "ELSU"


def read(path: Path, lines: list[str], labelled: bool) -> list[Sentence]:
    blocks = []
    block: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            blocks.append(block)
            block = []
        elif columns[0] != "-DOCSTART-" and not is_comment(columns):
            if labelled and (len(columns) < 2 or not TAG.fullmatch(columns[-1])):
                raise DataError(
                    f'{path}, line {number}: "{line.strip()}" should be a word and, in the last column, a tag: '
                    "O, B-TYPE, I-TYPE (or E, S, L, U, M)."
                )
            if labelled and columns[-1] != "O":
                check_tag(path, number, columns[-1])
            block.append((columns[0], columns[-1] if labelled else "O"))
    blocks.append(block)
    blocks = [block for block in blocks if block]
    gap = "" if written_apart(blocks) else " "
    return [join(block, gap) for block in blocks]


def is_comment(columns: list[str]) -> bool:
    return columns[0].startswith("#") and (len(columns) == 1 or not TAG.fullmatch(columns[-1]))


def check_tag(path: Path, number: int, tag: str) -> None:
    try:
        check_type(tag[2:])
    except DataError as error:
        raise DataError(f"{path}, line {number}: {error}") from None


def written_apart(blocks: list[list[tuple[str, str]]]) -> bool:
    """Whether the words are the characters of a text without spaces: most are single and not ASCII."""
    words = [word for block in blocks for word, _ in block]
    return sum(len(word) == 1 and not word.isascii() for word in words) > len(words) / 2


def join(block: list[tuple[str, str]], gap: str) -> Sentence:
    """The text of a block's words, with the spans that its tags name."""
    text, open_span = "", None
    spans: list[Any] = []
    for word, tag in block:
        text += gap * bool(text)
        start, end = len(text), len(text) + len(word) - 1
        text += word
        prefix, type_ = tag[0], tag[2:]
        if open_span and prefix in CONTINUES and type_ == open_span.type:
            open_span = open_span._replace(end=end)
        else:
            spans.append(open_span)
            open_span = None if tag == "O" else Span(type_, start, end)
        if prefix in CLOSES:
            spans.append(open_span)
            open_span = None
    spans.append(open_span)
    return make_sentence(text, [span for span in spans if span])
