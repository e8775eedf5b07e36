"""The two-pointer model: a BERT, a head that tags where entities start and a head that tags where they end."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoConfig, BertConfig, BertModel, BertPreTrainedModel

from fastloss.ner.data import DataError
from fastloss.ner.encode import IGNORE, NUM_TAGS


class TwoPointerModel(BertPreTrainedModel):
    """Start head on BERT's states; end head on the states and the start tag, given in training, guessed otherwise."""

    # The Trainer passes the number of decisions of the whole step, so that gradient accumulation and ranks
    # give the mean over all of them.
    accepts_loss_kwargs = True

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.start = nn.Linear(config.hidden_size, NUM_TAGS)
        self.end = nn.Sequential(
            nn.Linear(config.hidden_size + NUM_TAGS, config.hidden_size),
            nn.Tanh(),
            nn.LayerNorm(config.hidden_size),
            nn.Linear(config.hidden_size, NUM_TAGS),
        )
        self.criterion: Callable[..., torch.Tensor] | None = None
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns `logits` (B, T, 2, K), start before end, and the `loss` when the model has a criterion and labels.

        `labels` (B, T, 2) hold IGNORE at padding. The loss is the mean of both heads' losses over active tokens:
        each head's sum by `criterion(logits, target, reduction="sum")`, divided by the number of decisions.
        """
        hidden = self.dropout(self.bert(input_ids, attention_mask=attention_mask).last_hidden_state)
        start_logits = self.start(hidden)
        if self.training and labels is not None:
            start_tags = nn.functional.one_hot(labels[..., 0].clamp(min=0), NUM_TAGS).to(hidden.dtype)
        else:
            start_tags = start_logits.softmax(-1).to(hidden.dtype)
        end_logits = self.end(torch.cat([hidden, start_tags], dim=-1))
        output = {"logits": torch.stack([start_logits, end_logits], dim=2)}
        if labels is not None and self.criterion is not None:
            count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
            heads = zip((start_logits, end_logits), labels.unbind(-1), strict=True)
            total = sum(self.criterion(x.flatten(0, 1), y.flatten(), reduction="sum") for x, y in heads)
            output["loss"] = total / count
        return output


def tiny_model(vocabulary_size: int, layers: int, hidden: int, max_length: int) -> TwoPointerModel:
    """A small BERT with random weights, for data without a pretrained encoder at hand."""
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_length,
        # Weights of this size break the symmetry of attention within the first epoch; 0.02 needs several.
        initializer_range=0.05,
        attention_probs_dropout_prob=0.0,
    )
    model = TwoPointerModel(config)
    # Sinusoids to start from let a head find the neighbours of a character long before random positions would.
    angles = torch.arange(max_length)[:, None] / 10_000 ** (torch.arange(0, hidden, 2) / hidden)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    model.bert.embeddings.position_embeddings.weight.data = waves * config.initializer_range * 2**0.5
    return model


def load_model(name: str) -> TwoPointerModel:
    """Loads a BERT checkpoint (its heads start at random) or a saved TwoPointerModel."""
    try:
        model_type = AutoConfig.from_pretrained(name).model_type
        if model_type != "bert":
            raise DataError(f'"{name}" is a {model_type} model; it should be a BERT.')
        return TwoPointerModel.from_pretrained(name)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f'"{name}" cannot be loaded; it should be tiny, a directory or a hub name: {reason}') from None
