"""Tokenizers and where each of their tokens lies in the text: an encoder's own, or one trained for a tiny model."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fastloss.ner.data import DataError, Sentence, first_line

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
# One of these is in every directory that holds a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


class TextTokenizer:
    """Token ids of a text, and the characters (start, end), the end exclusive, that each token stands for.

    With `characters` every character is given to the tokenizer as a word of its own, so that a mention may begin and
    end anywhere, as text without spaces needs; else the tokenizer splits the text as it was trained to.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, characters: bool) -> None:
        self.tokenizer = tokenizer
        self.characters = characters
        self.pad_id = tokenizer.pad_token_id or 0
        self.unknown_id = tokenizer.unk_token_id
        self.prefix, self.suffix = self.special_ids()

    def special_ids(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        special = set(self.tokenizer.all_special_ids)
        ids = self.tokenizer("a")["input_ids"]
        inside = [position for position, id_ in enumerate(ids) if id_ not in special or id_ == self.unknown_id]
        if not inside:
            raise DataError('the tokenizer makes no token of the text "a"; it should be one of an encoder\'s files.')
        return ids[: inside[0]], ids[inside[-1] + 1 :]

    def __call__(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        # A tokenizer answers an empty list with an error.
        if not texts:
            return []
        words = [list(text) for text in texts] if self.characters else texts
        encoded = self.tokenizer(words, is_split_into_words=self.characters, add_special_tokens=False)
        return [(list(e.ids), self.offsets(e, text)) for e, text in zip(encoded.encodings, texts, strict=True)]

    def offsets(self, encoding: Any, text: str) -> list[tuple[int, int]]:
        if self.characters:
            return [(word, word + 1) for word in encoding.word_ids]
        return [trim(text, start, end) for start, end in encoding.offsets]

    def save(self, directory: str | Path) -> None:
        self.tokenizer.save_pretrained(directory)


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leaves out the spaces that some tokenizers count to a token; what is only space stays as it is."""
    inner = text[start:end].strip()
    if not inner:
        return start, end
    first = start + text[start:end].index(inner)
    return first, first + len(inner)


def train_tokenizer(sentences: list[Sentence], characters: bool) -> TextTokenizer:
    """The tokenizer of a model from scratch: the characters that occur twice, or WordPiece of 8,000 pieces."""
    texts = (sentence.text for sentence in sentences)
    if characters:
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL["unk_token"]))
        # Rare characters train [UNK], which unseen characters then use.
        trainer: Any = trainers.WordLevelTrainer(min_frequency=2, special_tokens=list(SPECIAL.values()))
        texts = (character for text in texts for character in text if character.isprintable() and character != " ")
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=8000, min_frequency=2, special_tokens=list(SPECIAL.values()), show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    cls_token, sep_token = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls_token} $A {sep_token}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls_token, sep_token)],
    )
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL), characters)


def load_tokenizer(name: str, characters: bool) -> TextTokenizer:
    """The tokenizer of a local directory or a hub name."""
    directory = Path(name)
    if directory.is_dir() and not any(next(directory.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise DataError(f"{name} holds no tokenizer; it should have one of {', '.join(TOKENIZER_FILES)}.")
    # RoBERTa's takes words only if each may begin with a space.
    options = {"add_prefix_space": True} if characters else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # The files are somebody else's, and the tokenizers raise what they like.
        raise DataError(f'the tokenizer of "{name}" cannot be loaded: {first_line(error)}') from None
    if not tokenizer.is_fast:
        raise DataError(f'the tokenizer of "{name}" is not a fast one, which knows where in the text its tokens lie.')
    return TextTokenizer(tokenizer, characters)
