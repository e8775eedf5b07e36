"""Reads named-entity data from files: CLUENER's JSON, JSON lines with spans, and CoNLL columns, one module each."""

from pathlib import Path

from fastloss.ner.data import Corpus, DataError, Sentence
from fastloss.ner.readers import conll, jsonl

TRAIN = ("train",)
DEV = ("dev", "valid", "validation", "val", "testa")
READERS = {
    ".json": jsonl.read,
    ".jsonl": jsonl.read,
    ".conll": conll.read,
    ".txt": conll.read,
    ".bio": conll.read,
    ".iob": conll.read,
    ".tsv": conll.read,
}


def read_corpus(directory: str | Path) -> Corpus:
    """Reads a directory's train and dev files, whichever of the formats they have."""
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; it should be one that holds a train and a dev file.")
    return Corpus(*(read_sentences(find(directory, stems)) for stems in (TRAIN, DEV)))


def find(directory: Path, stems: tuple[str, ...]) -> Path:
    """The one file of a part of the corpus."""
    found = [path for stem in stems for suffix in READERS if (path := directory / f"{stem}{suffix}").is_file()]
    if not found:
        raise DataError(
            f"{directory} holds no {stems[0]} file; it should be named {' or '.join(stems)} "
            f"and end in one of {' '.join(READERS)}."
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{directory} holds {names}; there should be one {stems[0]} file.")
    return found[0]


def read_sentences(path: str | Path, labelled: bool = True) -> list[Sentence]:
    """Reads every sentence of a file, or raises DataError at the first that is wrong; nothing is half-read.

    With `labelled=False` a sentence needs only its text, as in CLUENER's test.json, and labels are not looked at.
    """
    path = Path(path)
    sentences = READERS.get(path.suffix, jsonl.read)(path, read_lines(path), labelled)
    if not sentences:
        raise DataError(f"{path} holds no sentence.")
    if not any(sentence.text for sentence in sentences):
        raise DataError(f"{path} holds {len(sentences)} sentences, and the text of every one is empty.")
    return sentences


def read_lines(path: Path | None, raw: bytes | None = None) -> list[str]:
    """The lines of a UTF-8 file, or of `raw`, the standard input's bytes.

    Only "\\n" ends a line: the texts may hold other characters that Unicode counts as line breaks.
    """
    name = path or "the standard input"
    try:
        if path is not None:
            raw = path.read_bytes()
        return (raw or b"").decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text: {error.reason}.") from None
