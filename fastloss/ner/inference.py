"""Applies a trained model to sentences, and saves and loads models."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from fastloss.ner.data import DataError, Sentence, Span
from fastloss.ner.encode import EncodedSentences, collate
from fastloss.ner.model import TwoPointerModel, check_vocabulary, load_model
from fastloss.ner.tokens import TextTokenizer, load_tokenizer


def is_main_process() -> bool:
    """True outside torchrun and on its first rank, the one that prints and writes."""
    return int(os.environ.get("RANK", 0)) == 0


def quieten() -> None:
    """Leaves the console to the lines of this command."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@torch.no_grad()
def run_batches(
    model: TwoPointerModel, data: EncodedSentences, batch_size: int = 64
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the logits (B, T, 2, K) and labels (B, T, 2) of each batch, on the CPU and in order."""
    model.eval()
    for first in range(0, len(data), batch_size):
        pieces = [data[index] for index in range(first, min(first + batch_size, len(data)))]
        batch = collate(pieces, data.tokenizer.pad_id)
        output = model(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
        yield output["logits"].float().cpu(), batch["labels"]


def predict_tags(model: TwoPointerModel, data: EncodedSentences) -> list[np.ndarray]:
    """The likeliest tags (T, 2) of each piece."""
    return [piece for logits, _ in run_batches(model, data) for piece in logits.argmax(-1).numpy()]


def predict(model: TwoPointerModel, tokenizer: TextTokenizer, sentences: list[Sentence]) -> list[set[Span]]:
    """The spans of each sentence."""
    data = EncodedSentences(sentences, tokenizer, model.config.piece_length, model.config.types)
    return data.decode(predict_tags(model, data))


def save(model: TwoPointerModel, tokenizer: TextTokenizer, directory: str | Path) -> None:
    """Writes config.json, the weights and the tokenizer's files."""
    model.save_pretrained(directory)
    tokenizer.save(directory)


def load(directory: str | Path) -> tuple[TwoPointerModel, TextTokenizer]:
    """Reads back what `save` wrote."""
    if not Path(directory, "config.json").is_file():
        raise DataError(f"{directory} holds no config.json; it should be a directory that `fastloss train` saved.")
    quieten()
    model = load_model(str(directory))
    tokenizer = load_tokenizer(str(directory), model.config.characters)
    check_vocabulary(str(directory), model, len(tokenizer.tokenizer))
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
