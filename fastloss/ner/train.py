"""Trains one model with one loss on Hugging Face's Trainer."""

import copy
import random
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from fastloss.ner.data import Corpus, DataError, Sentence, types_of, written_in_characters
from fastloss.ner.diagnosis import batch_profile, finite, sample_batches
from fastloss.ner.encode import EncodedSentences, collate
from fastloss.ner.inference import predict_tags, quieten
from fastloss.ner.losses import Loss, make_criterion
from fastloss.ner.metrics import micro_f1
from fastloss.ner.model import TwoPointerConfig, TwoPointerModel, load_encoder, tiny_model
from fastloss.ner.progress import RunLines
from fastloss.ner.tokens import TextTokenizer, load_tokenizer, train_tokenizer

HELD_OUT = 0.1
# Half of the tokens unknown, and the texts are in another script than the tokenizer's.
MOST_UNKNOWN = 0.5


@dataclass(frozen=True)
class Settings:
    """Everything besides loss, seed and data that a result depends on."""

    encoder: str = "tiny"
    layers: int = 2
    hidden: int = 128
    max_length: int = 128
    epochs: int = 8
    until_flat: bool = False
    patience: int = 3
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.1
    accumulation: int = 1
    bf16: bool = False
    fp16: bool = False


# What the article trained with, for encoders that bring pretrained weights.
PRETRAINED = Settings(encoder="bert-base-chinese", batch_size=128, learning_rate=5e-5, warmup=0.0)


@dataclass
class Run:
    """A trained model, the data it saw, and the record of its training."""

    model: TwoPointerModel
    tokenizer: TextTokenizer
    train_set: EncodedSentences
    dev_set: EncodedSentences
    loss: Loss
    record: dict[str, Any]

    def batches(self, batch_size: int) -> list[dict[str, Any]]:
        return sample_batches(self.train_set, batch_size, partial(collate, pad_id=self.tokenizer.pad_id))


def make_tokenizer(settings: Settings, train: list[Sentence]) -> TextTokenizer:
    characters = written_in_characters(train)
    if settings.encoder == "tiny":
        return train_tokenizer(train, characters)
    return load_tokenizer(settings.encoder, characters)


def build(settings: Settings, corpus: Corpus) -> tuple[TwoPointerModel, TextTokenizer]:
    """A fresh model and its tokenizer; seed the generators first."""
    tokenizer = make_tokenizer(settings, corpus.train)
    types = types_of(*corpus)
    if not types:
        raise DataError("the data holds no mention of any type; there is nothing to learn.")
    size = len(tokenizer.tokenizer)
    config = TwoPointerConfig(types=types, piece_length=settings.max_length, characters=tokenizer.characters)
    if settings.encoder == "tiny":
        return tiny_model(size, settings.layers, settings.hidden, config), tokenizer
    return load_encoder(settings.encoder, size, config), tokenizer


def hold_out(sentences: list[Sentence]) -> Corpus:
    """Splits training sentences into those to train on and a tenth to decide on, the same every time."""
    order = list(range(len(sentences)))
    random.Random(0).shuffle(order)
    count = max(1, round(HELD_OUT * len(sentences)))
    if count == len(sentences):
        raise DataError("there is one training sentence; two are needed to hold one out.")
    held, kept = sorted(order[:count]), sorted(order[count:])
    return Corpus([sentences[i] for i in kept], [sentences[i] for i in held])


def training_arguments(settings: Settings, seed: int, directory: str) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=directory,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        lr_scheduler_type="linear",
        adam_epsilon=1e-8,
        max_grad_norm=1.0,
        seed=seed,
        bf16=settings.bf16,
        fp16=settings.fp16,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        # The losses run on CPU and CUDA only, so no other accelerator is taken.
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
    )


class UntilFlat(TrainerCallback):
    """Trains until the F1 on held-out training sentences rises no more; the model of the best epoch is kept.

    The learning rate warms up in the first epoch and is halved after every epoch without a new best; `patience` such
    epochs on end are the end.
    """

    def __init__(self, model: TwoPointerModel, held_set: EncodedSentences, settings: Settings) -> None:
        self.model, self.held_set, self.settings = model, held_set, settings
        self.scores: list[float] = []
        self.best: dict[str, torch.Tensor] = {}
        self.factor = 1.0

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        warmup = max(1, steps // self.settings.epochs) if self.settings.warmup else 1
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup) * self.factor)

    @property
    def best_epoch(self) -> int:
        return 1 + int(np.argmax(self.scores))

    @property
    def stale(self) -> int:
        """Epochs since the best one; until a first mention is found there is none."""
        return len(self.scores) - self.best_epoch if max(self.scores) > 0 else 0

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        tags = predict_tags(self.model, self.held_set)
        self.scores.append(micro_f1(self.held_set.sentences, self.held_set.decode(tags)))
        if self.stale == 0:
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        else:
            self.factor /= 2
        control.should_training_stop |= self.stale >= self.settings.patience

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.model.load_state_dict(self.best)


class EarlyProfile(TrainerCallback):
    """Looks at the gradient after the first epoch, when there is still something to learn."""

    def __init__(self, run: Run, batch_size: int) -> None:
        self.run, self.batch_size = run, batch_size

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if "early" not in self.run.record:
            self.run.record["early"] = profile(self.run, self.batch_size)


class GroupingTrainer(Trainer):
    """Trains on batches of pieces of like length, which spares padding, and evaluates in order, as decoding needs."""

    until_flat: UntilFlat | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps, dataset=self.train_dataset
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.until_flat is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = self.until_flat.schedule(optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler


def train(
    corpus: Corpus, loss: Loss, seed: int, settings: Settings, lines: RunLines, tensorboard: Path | None = None
) -> Run:
    """Trains one model; with `until_flat` on the part of train that is not held out to decide when to stop."""
    quieten()
    transformers.set_seed(seed)
    model, tokenizer = build(settings, corpus)
    fit, held = hold_out(corpus.train) if settings.until_flat else (corpus.train, None)

    def encode(sentences: list[Sentence]) -> EncodedSentences:
        return EncodedSentences(sentences, tokenizer, settings.max_length, model.config.types)

    run = Run(model, tokenizer, encode(fit), encode(corpus.dev), loss, {})
    if run.train_set.unknown_share() > MOST_UNKNOWN:
        raise DataError(
            f"the tokenizer of {settings.encoder} does not know {run.train_set.unknown_share():.0%} of the tokens; "
            "it should be one for these texts."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tag_counts = run.train_set.tag_counts()
    model.criteria = tuple(make_criterion(loss, tag_counts).to(device) for _ in range(2))
    for criterion in model.criteria:
        criterion.across_ranks = True
    until_flat = UntilFlat(model, encode(held), settings) if held else None
    callbacks = [lines, EarlyProfile(run, settings.batch_size), *filter(None, [until_flat])]
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter  # TensorBoard is no requirement.

        callbacks.append(TensorBoardCallback(SummaryWriter(tensorboard)))
    with tempfile.TemporaryDirectory() as directory:
        trainer = GroupingTrainer(
            model=model,
            args=training_arguments(settings, seed, directory),
            train_dataset=run.train_set,
            eval_dataset=run.dev_set,
            data_collator=partial(collate, pad_id=tokenizer.pad_id),
            compute_metrics=lambda p: {"f1": micro_f1(corpus.dev, run.dev_set.decode(p.predictions))},
            # Tags instead of logits: a fraction of the memory, and the Trainer's padding (-100) cannot win.
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
            callbacks=callbacks,
        )
        trainer.until_flat = until_flat
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    run.record |= {
        "epochs": epochs(trainer.state.log_history, until_flat.scores if until_flat else []),
        "best_epoch": until_flat.best_epoch if until_flat else None,
        "seconds": lines.step_seconds,
        "steps": trainer.state.global_step,
        "late": profile(run, settings.batch_size),
    }
    return run


def profile(run: Run, batch_size: int) -> dict[str, Any]:
    """`batch_profile` of the start head's loss, in training mode, without a trace in the run."""
    criterion = copy.deepcopy(run.model.criteria[0]).train()
    criterion.across_ranks = False
    device = run.model.device
    batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in run.batches(batch_size)]
    with torch.random.fork_rng():
        return batch_profile(run.model, batches, criterion)


def epochs(history: list[dict[str, Any]], held: list[float]) -> list[dict[str, Any]]:
    """One row an epoch: losses, dev F1 and, where there is one, the held-out F1."""
    fits = [entry for entry in history if "loss" in entry]
    devs = [entry for entry in history if "eval_loss" in entry]
    rows = [
        {
            "epoch": round(dev["epoch"]),
            "train_loss": finite(fit["loss"]),
            "dev_loss": finite(dev["eval_loss"]),
            "f1": dev["eval_f1"],
            "learning_rate": fit["learning_rate"],
        }
        for fit, dev in zip(fits, devs, strict=True)
    ]
    return [row | {"held_f1": score} for row, score in zip(rows, held, strict=True)] if held else rows
