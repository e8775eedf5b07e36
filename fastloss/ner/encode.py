"""Turns sentences into tensors and tags back into spans: one token per character, one tag per token and head."""

from collections import Counter
from pathlib import Path

import torch

from fastloss.ner.data import TYPES, DataError, Sentence, Span

IGNORE = -100
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TAG_OF = {type_: tag for tag, type_ in enumerate(TYPES, start=1)}
NUM_TAGS = len(TYPES) + 1


class Vocabulary:
    """Maps each character to one token id, so that positions in the text and in the model are the same."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.ids = {token: index for index, token in enumerate(tokens)}
        for token in SPECIAL[:4]:
            if token not in self.ids:
                raise DataError(f"the vocabulary has no {token} token; it should be a BERT vocabulary.")

    @classmethod
    def build(cls, sentences: list[Sentence]) -> "Vocabulary":
        """The characters that occur at least twice; the others train [UNK], which unseen characters then use."""
        counts = Counter(character for sentence in sentences for character in sentence.text)
        frequent = [c for c, count in counts.items() if count > 1 and c.isprintable() and not c.isspace()]
        return cls([*SPECIAL, *sorted(frequent)])

    @classmethod
    def from_pretrained(cls, name: str) -> "Vocabulary":
        """The vocabulary of a saved model or of a pretrained BERT (a local directory or a hub name)."""
        file = Path(name) / "vocab.txt"
        if file.is_file():
            return cls(file.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        from transformers import AutoTokenizer

        try:
            ids = AutoTokenizer.from_pretrained(name).get_vocab()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f'the vocabulary of "{name}" cannot be loaded: {reason}') from None
        return cls(sorted(ids, key=ids.get))

    def save(self, directory: str | Path) -> None:
        Path(directory, "vocab.txt").write_text("\n".join(self.tokens) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids of [CLS], each character and [SEP]; a vocabulary without capitals gets lower case."""
        unknown = self.ids["[UNK]"]
        characters = [self.ids.get(c, self.ids.get(c.lower(), unknown)) for c in text]
        return [self.ids["[CLS]"], *characters, self.ids["[SEP]"]]


def split_text(text: str, limit: int) -> list[tuple[int, str]]:
    """Cuts a text into (offset, piece) of at most `limit` characters, after punctuation where there is some."""
    pieces, start = [], 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        cut = max(window.rfind(mark) for mark in "。！？；，,;!? ") + 1
        cut = cut or limit
        pieces.append((start, text[start : start + cut]))
        start += cut
    return [*pieces, (start, text[start:])]


def tag(length: int, spans: list[Span]) -> list[list[int]]:
    """[start tag, end tag] of each token of one piece; [CLS] and [SEP] are not decisions and get IGNORE.

    A position holds one tag, so where two spans share a start or an end the later one in the list keeps it.
    """
    tags = [[0, 0] for _ in range(length)]
    for span in spans:
        tags[span.start][0] = tags[span.end][1] = TAG_OF[span.type]
    return [[IGNORE, IGNORE], *tags, [IGNORE, IGNORE]]


def untag(starts: list[int], ends: list[int]) -> list[Span]:
    """Pairs each start with the nearest end at or after it that has the same tag; unpaired starts are dropped."""
    spans = []
    for start, start_tag in enumerate(starts):
        if start_tag:
            end = next((i for i in range(start, len(ends)) if ends[i] == start_tag), None)
            if end is not None:
                spans.append(Span(TYPES[start_tag - 1], start, end))
    return spans


class EncodedSentences(torch.utils.data.Dataset):
    """Sentences cut to the model's length, as token ids and tags; remembers where each piece came from."""

    def __init__(self, sentences: list[Sentence], vocabulary: Vocabulary, max_length: int):
        self.sentences = sentences
        self.origins: list[tuple[int, int]] = []
        self.features: list[dict] = []
        for index, sentence in enumerate(sentences):
            for offset, piece in split_text(sentence.text, max_length - 2):
                inside = [
                    Span(span.type, span.start - offset, span.end - offset)
                    for span in sentence.spans
                    if offset <= span.start and span.end < offset + len(piece)
                ]
                self.origins.append((index, offset))
                self.features.append({"input_ids": vocabulary.encode(piece), "labels": tag(len(piece), inside)})

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict:
        return self.features[index]

    def decode(self, tags) -> list[set[Span]]:
        """The spans of each sentence from predicted tags, an integer array (pieces, tokens, 2)."""
        found: list[set[Span]] = [set() for _ in self.sentences]
        for (index, offset), feature, piece_tags in zip(self.origins, self.features, tags, strict=True):
            starts, ends = piece_tags[1 : len(feature["input_ids"]) - 1].T.tolist()
            for span in untag(starts, ends):
                found[index].add(Span(span.type, span.start + offset, span.end + offset))
        return found


def collate(features: list[dict]) -> dict[str, torch.Tensor]:
    """Pads a batch to its longest piece: token ids and mask (B, T), labels (B, T, 2) with IGNORE at the padding."""
    width = max(len(feature["input_ids"]) for feature in features)
    # Zero is [PAD] in every BERT vocabulary; the mask hides it in any case.
    input_ids = torch.zeros(len(features), width, dtype=torch.long)
    attention_mask = torch.zeros(len(features), width, dtype=torch.long)
    labels = torch.full((len(features), width, 2), IGNORE)
    for row, feature in enumerate(features):
        length = len(feature["input_ids"])
        input_ids[row, :length] = torch.tensor(feature["input_ids"])
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.tensor(feature["labels"])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
