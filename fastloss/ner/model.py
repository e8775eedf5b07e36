"""The two-pointer model: an encoder, a head that tags where entities start and a head that tags where they end."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, PretrainedConfig, PreTrainedModel

from fastloss.ner.data import DataError, first_line
from fastloss.ner.losses import IGNORE, Criterion


class TwoPointerConfig(PretrainedConfig):
    """The encoder's configuration, the types in the order of their tags, and how texts become tokens."""

    model_type = "fastloss_two_pointer"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        types: Sequence[str] = (),
        piece_length: int = 128,
        characters: bool = True,
        dropout: float = 0.1,
        **others: Any,
    ) -> None:
        self.encoder = encoder or {"model_type": "bert"}
        self.types = list(types)
        self.piece_length = piece_length
        self.characters = characters
        self.dropout = dropout
        super().__init__(**others)


class TwoPointerModel(PreTrainedModel):
    """Start head on the states; end head on the states and the start tag, given in training, guessed otherwise."""

    config_class = TwoPointerConfig
    # The Trainer passes the number of decisions of the whole step, so that gradient accumulation and ranks
    # give the mean over all of them.
    accepts_loss_kwargs = True

    def __init__(self, config: TwoPointerConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(**config.encoder))
        # A pooler gets no gradient, which DistributedDataParallel refuses.
        self.encoder.pooler = None
        hidden, self.tags = self.encoder.config.hidden_size, len(config.types) + 1
        self.dropout = nn.Dropout(config.dropout)
        self.start = nn.Linear(hidden, self.tags)
        self.end = nn.Sequential(
            nn.Linear(hidden + self.tags, hidden), nn.Tanh(), nn.LayerNorm(hidden), nn.Linear(hidden, self.tags)
        )
        # A loss per head, start and end. A tuple, since their state is not the model's to save or to broadcast.
        self.criteria: tuple[Criterion, ...] = ()
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns `logits` (B, T, 2, K), start before end, and the `loss` when the model has criteria and labels.

        `labels` (B, T, 2) hold IGNORE at padding. The loss is the mean of both heads' losses over active tokens:
        the sum of each head by its criterion, over the number of decisions.
        """
        hidden = self.dropout(self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state)
        start_logits = self.start(hidden)
        if self.training and labels is not None:
            start_tags = nn.functional.one_hot(labels[..., 0].clamp(min=0), self.tags).to(hidden.dtype)
        else:
            start_tags = start_logits.softmax(-1).to(hidden.dtype)
        end_logits = self.end(torch.cat([hidden, start_tags], dim=-1))
        output = {"logits": torch.stack([start_logits, end_logits], dim=2)}
        if labels is not None and self.criteria:
            count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
            heads = zip(self.criteria, (start_logits, end_logits), labels.unbind(-1), strict=True)
            output["loss"] = sum(loss.train(self.training)(x.flatten(0, 1), y.flatten(), count) for loss, x, y in heads)
        return output


def tiny_model(vocabulary_size: int, layers: int, hidden: int, config: TwoPointerConfig) -> TwoPointerModel:
    """A small BERT with random weights, for data without a pretrained encoder at hand."""
    length = config.piece_length
    bert = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        max_position_embeddings=length,
        # Weights of this size break the symmetry of attention within the first epoch; 0.02 needs several.
        initializer_range=0.05,
        attention_probs_dropout_prob=0.0,
    )
    config.encoder, config.initializer_range = bert.to_dict(), bert.initializer_range
    model = TwoPointerModel(config)
    # Sinusoids to start from let a head find the neighbours of a token long before random positions would.
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, hidden, 2) / hidden)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    model.encoder.embeddings.position_embeddings.weight.data = waves * bert.initializer_range * 2**0.5
    return model


def load_encoder(name: str, vocabulary_size: int, config: TwoPointerConfig) -> TwoPointerModel:
    """The model on a pretrained encoder (a local directory or a hub name); its heads start at random."""
    try:
        encoder, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        config.encoder = encoder.config.to_dict()
        config.dropout = getattr(encoder.config, "hidden_dropout_prob", config.dropout)
        model = TwoPointerModel(config)
    except Exception as error:  # The files are somebody else's: truncated, of another kind, not UTF-8.
        reason = first_line(error)
        raise DataError(f'"{name}" cannot be loaded; it should be tiny, a directory or a hub name: {reason}') from None
    encoder.pooler = None
    refuse_missing(name, {key for key in report["missing_keys"] if not key.startswith("pooler")})
    model.encoder = encoder
    check_vocabulary(name, model, vocabulary_size)
    positions = getattr(encoder.config, "max_position_embeddings", None)
    try:
        with torch.no_grad():
            ids = torch.full((1, config.piece_length), vocabulary_size - 1)
            model.eval()(ids, torch.ones_like(ids))
    except (IndexError, RuntimeError):
        raise DataError(
            f"--max-length is {config.piece_length}, but {name} has positions for at most {positions} tokens."
        ) from None
    return model


def check_vocabulary(name: str, model: TwoPointerModel, vocabulary_size: int) -> None:
    rows = model.encoder.get_input_embeddings().num_embeddings
    if vocabulary_size > rows:
        raise DataError(
            f'the tokenizer of "{name}" has {vocabulary_size} tokens, but its model has embeddings for {rows}; '
            "they should belong together."
        )


def load_model(name: str) -> TwoPointerModel:
    """Reads back a TwoPointerModel that was saved."""
    try:
        model, report = TwoPointerModel.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # A directory may hold anything.
        raise DataError(f'the model in "{name}" cannot be loaded: {first_line(error)}') from None
    refuse_missing(name, report["missing_keys"])
    return model


def refuse_missing(name: str, keys: set[str]) -> None:
    """Weights that a file lacks would be random without a word."""
    if keys:
        raise DataError(f'the weights of "{name}" lack {len(keys)} tensors of its model, {min(keys)} among them.')
