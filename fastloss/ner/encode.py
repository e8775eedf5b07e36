"""Turns sentences into tensors and tags back into spans: one tag per token and head, start and end."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastloss.ner.data import Sentence, Span
from fastloss.ner.losses import IGNORE
from fastloss.ner.tokens import TextTokenizer

PUNCTUATION = "。！？；，,;.!?"


def split_tokens(text: str, offsets: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Cuts a text's tokens into pieces (first, end) of at most `limit`: after punctuation, else between words."""
    pieces, first = [], 0
    while len(offsets) - first > limit:
        window = range(first + 1, first + limit + 1)

        def last(good: Callable[[int], bool], window: range = window) -> int | None:
            return next((cut for cut in reversed(window) if good(cut)), None)

        cut = last(lambda cut: text[offsets[cut - 1][1] - 1] in PUNCTUATION)
        cut = cut or last(lambda cut: offsets[cut - 1][1] < offsets[cut][0]) or window[-1]
        pieces.append((first, cut))
        first = cut
    return [*pieces, (first, len(offsets))]


def tag(offsets: list[tuple[int, int]], spans: Sequence[Span], tag_of: dict[str, int]) -> list[list[int]]:
    """[start tag, end tag] of each token, from the spans that lie between the first and the last of them.

    A position holds one tag, so where two spans share a start or an end the later one keeps it.
    """
    tags = [[0, 0] for _ in offsets]
    first = {character: token for token, span in reversed(list(enumerate(offsets))) for character in range(*span)}
    last = {character: token for token, span in enumerate(offsets) for character in range(*span)}
    for span in spans:
        if span.start in first and span.end in last:
            tags[first[span.start]][0] = tags[last[span.end]][1] = tag_of[span.type]
    return tags


def untag(starts: list[int], ends: list[int]) -> list[tuple[int, int, int]]:
    """Pairs each start with the nearest end at or after it that has the same tag, as (tag, first, last token)."""
    pairs = []
    for start, start_tag in enumerate(starts):
        if start_tag:
            end = next((i for i in range(start, len(ends)) if ends[i] == start_tag), None)
            if end is not None:
                pairs.append((start_tag, start, end))
    return pairs


class EncodedSentences(torch.utils.data.Dataset[Any]):
    """Sentences cut to the model's length, as token ids and tags; remembers where each piece came from."""

    def __init__(
        self, sentences: list[Sentence], tokenizer: TextTokenizer, max_length: int, types: Sequence[str]
    ) -> None:
        self.sentences = sentences
        self.tokenizer = tokenizer
        self.types = types
        self.origins: list[tuple[int, list[tuple[int, int]]]] = []
        self.features: list[dict[str, Any]] = []
        tag_of = {type_: tag for tag, type_ in enumerate(types, start=1)}
        prefix, suffix = tokenizer.prefix, tokenizer.suffix
        limit = max_length - len(prefix) - len(suffix)
        encoded = tokenizer([sentence.text for sentence in sentences])
        for index, (sentence, (ids, offsets)) in enumerate(zip(sentences, encoded, strict=True)):
            known = [span for span in sentence.spans if span.type in tag_of]
            for first, end in split_tokens(sentence.text, offsets, limit):
                self.origins.append((index, offsets[first:end]))
                # [CLS] and [SEP] are not decisions.
                tags = [[IGNORE, IGNORE] for _ in prefix], [[IGNORE, IGNORE] for _ in suffix]
                labels = [*tags[0], *tag(offsets[first:end], known, tag_of), *tags[1]]
                self.features.append({"input_ids": [*prefix, *ids[first:end], *suffix], "labels": labels})

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    def tag_counts(self) -> torch.Tensor:
        """Decisions of each tag, both heads together, int64 (K)."""
        labels = torch.tensor([tag for feature in self.features for pair in feature["labels"] for tag in pair])
        return torch.bincount(labels[labels != IGNORE], minlength=len(self.types) + 1)

    def unknown_share(self) -> float:
        """The share of the tokens that the tokenizer does not know."""
        ids = [id_ for feature in self.features for id_ in self.inside(feature["input_ids"])]
        return sum(id_ == self.tokenizer.unknown_id for id_ in ids) / max(len(ids), 1)

    def inside(self, tokens: Any) -> Any:
        """Of one value a token, those of the tokens between [CLS] and [SEP]."""
        return tokens[len(self.tokenizer.prefix) : len(tokens) - len(self.tokenizer.suffix)]

    def decode(self, tags: Any) -> list[set[Span]]:
        """The spans of each sentence from predicted tags, an integer array (pieces, tokens, 2)."""
        found: list[set[Span]] = [set() for _ in self.sentences]
        for (index, offsets), feature, piece_tags in zip(self.origins, self.features, tags, strict=True):
            starts, ends = self.inside(piece_tags[: len(feature["input_ids"])]).T.tolist()
            for tag_, first, last in untag(starts, ends):
                found[index].add(Span(self.types[tag_ - 1], offsets[first][0], offsets[last][1] - 1))
        return found

    def round_trip(self) -> list[set[Span]]:
        """What is left of the true spans after tagging and decoding: all that two pointers can hold of them."""
        return self.decode([torch.tensor(feature["labels"]).reshape(-1, 2).numpy() for feature in self.features])


def collate(features: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pads a batch to its longest piece: token ids and mask (B, T), labels (B, T, 2) with IGNORE at the padding."""
    width = max(len(feature["input_ids"]) for feature in features)
    input_ids = torch.full((len(features), width), pad_id)
    attention_mask = torch.zeros(len(features), width, dtype=torch.long)
    labels = torch.full((len(features), width, 2), IGNORE)
    for row, feature in enumerate(features):
        length = len(feature["input_ids"])
        input_ids[row, :length] = torch.tensor(feature["input_ids"])
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.tensor(feature["labels"])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
