"""Trains one model with one loss on Hugging Face's Trainer and measures it."""

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

import fastloss
from fastloss.ner.data import Corpus, DataError, Sentence, Span
from fastloss.ner.encode import IGNORE, EncodedSentences, Vocabulary, collate
from fastloss.ner.metrics import evaluate_spans, f1_score, sentence_counts
from fastloss.ner.model import TwoPointerModel, load_model, tiny_model


@dataclass(frozen=True)
class Loss:
    """One row of the comparison: a function of fastloss (and of fastloss.reference) and its options."""

    title: str
    function: str
    options: dict


LOSSES = {
    "ce": Loss("cross entropy", "cross_entropy", {}),
    "lsr": Loss("cross entropy, label smoothing 0.1", "cross_entropy", {"label_smoothing": 0.1}),
    "focal": Loss("focal, gamma 2", "focal_loss", {"gamma": 2.0}),
    "ghmc": Loss("GHM-C, 10 bins", "ghmc_loss", {"bins": 10}),
}


@dataclass(frozen=True)
class Settings:
    """Everything besides loss, seed and data that a result depends on."""

    encoder: str = "tiny"
    layers: int = 2
    hidden: int = 128
    max_length: int = 128
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.1
    accumulation: int = 1
    bf16: bool = False
    fp16: bool = False


# What the article trained with, for encoders that bring pretrained weights.
PRETRAINED = Settings(encoder="bert-base-chinese", batch_size=128, learning_rate=5e-5, warmup=0.0)


def criterion(name: str):
    """The loss as `criterion(logits, target, reduction=...)`.

    Under torchrun, GHM-C counts its bins per rank; the other losses are sums over decisions, so that the Trainer's
    mean over all ranks is the one of a single process.
    """
    loss = LOSSES[name]
    return partial(getattr(fastloss, loss.function), **loss.options)


def build(settings: Settings, corpus: Corpus) -> tuple[TwoPointerModel, Vocabulary]:
    """A fresh model and its vocabulary; seed the generators first."""
    if settings.encoder == "tiny":
        vocabulary = Vocabulary.build(corpus.train)
        return tiny_model(len(vocabulary.tokens), settings.layers, settings.hidden, settings.max_length), vocabulary
    model = load_model(settings.encoder)
    longest = model.config.max_position_embeddings
    if settings.max_length > longest:
        raise DataError(
            f"--max-length is {settings.max_length}, but {settings.encoder} takes at most {longest} tokens."
        )
    return model, Vocabulary.from_pretrained(settings.encoder)


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
    )


class GroupingTrainer(Trainer):
    """Trains on batches of pieces of like length, which spares padding, and evaluates in order, as decoding needs."""

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedSampler:
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps, dataset=self.train_dataset
        )


class EpochLines(TrainerCallback):
    """A progress bar while an epoch runs, where someone is watching, and one line when it has been evaluated."""

    def __init__(self, label: str):
        self.label = label
        self.bar = None

    def on_epoch_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            steps = state.max_steps // args.num_train_epochs
            self.bar = tqdm(total=int(steps), desc=self.label, leave=False, disable=not sys.stderr.isatty())

    def on_step_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.update()

    def on_evaluate(self, args, state, control, metrics, **_):
        if self.bar is not None:
            self.bar.close()
            train_loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
            print(
                f"{self.label}  epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  train loss {train_loss:.4f}  "
                f"dev loss {metrics['eval_loss']:.4f}  F1 {metrics['eval_f1']:.4f}",
                file=sys.stderr,
            )


def make_trainer(
    model: TwoPointerModel, arguments: TrainingArguments, label: str, train: EncodedSentences, dev: EncodedSentences
) -> Trainer:
    """Hugging Face's Trainer with span F1 on `dev` after every epoch, and our lines in place of its own output."""

    def micro_f1(prediction) -> dict[str, float]:
        counts = sentence_counts(dev.sentences, dev.decode(prediction.predictions))
        return {"f1": float(f1_score(*counts.sum((0, 1))))}

    trainer = GroupingTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=collate,
        compute_metrics=micro_f1,
        # Tags instead of logits: an eleventh of the memory, and the Trainer's padding (-100) cannot win.
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[EpochLines(label)],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(corpus: Corpus, loss: str, seed: int, settings: Settings) -> tuple[TwoPointerModel, Vocabulary, dict]:
    """Trains one model; returns it with its vocabulary and a JSON-ready result of everything that was measured."""
    quieten()
    transformers.set_seed(seed)
    model, vocabulary = build(settings, corpus)
    model.config.piece_length = settings.max_length
    train_set = EncodedSentences(corpus.train, vocabulary, settings.max_length)
    dev_set = EncodedSentences(corpus.dev, vocabulary, settings.max_length)
    with tempfile.TemporaryDirectory() as directory:
        arguments = training_arguments(settings, seed, directory)
        trainer = make_trainer(model, arguments, f"{loss:5} seed {seed}", train_set, dev_set)
        model.criterion = criterion(loss)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    batches = list(run_batches(model, dev_set))
    predictions = dev_set.decode(tags(batches))
    logits = torch.cat([logits[labels != IGNORE] for logits, labels in batches])
    target = torch.cat([labels[labels != IGNORE] for _, labels in batches])
    result = {
        "loss": loss,
        "seed": seed,
        "settings": asdict(settings),
        "epochs": [
            {
                "epoch": round(dev["epoch"]),
                "train_loss": fit["loss"],
                "dev_loss": dev["eval_loss"],
                "f1": dev["eval_f1"],
            }
            for fit, dev in zip(logged, evaluated, strict=True)
        ],
        "metrics": evaluate_spans(corpus.dev, predictions),
        "sentence_counts": sentence_counts(corpus.dev, predictions).sum(1).tolist(),
        "gradient": gradient_profile(loss, logits, target),
        "seconds": seconds,
        "steps": trainer.state.global_step,
    }
    return model, vocabulary, result


def is_main_process() -> bool:
    """True outside torchrun and on its first rank, the one that prints and writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def quieten() -> None:
    """Leaves the console to the lines of this command."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@torch.no_grad()
def run_batches(model: TwoPointerModel, data: EncodedSentences, batch_size: int = 64):
    """Yields the logits (B, T, 2, K) and labels (B, T, 2) of each batch, on the CPU and in order."""
    model.eval()
    for first in range(0, len(data), batch_size):
        batch = collate([data[index] for index in range(first, min(first + batch_size, len(data)))])
        output = model(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
        yield output["logits"].float().cpu(), batch["labels"]


def tags(batches) -> list[np.ndarray]:
    """The likeliest tags (T, 2) of each piece."""
    return [piece for logits, _ in batches for piece in logits.argmax(-1).numpy()]


def predict(model: TwoPointerModel, vocabulary: Vocabulary, sentences: list[Sentence]) -> list[set[Span]]:
    """The spans of each sentence."""
    data = EncodedSentences(sentences, vocabulary, model.config.piece_length)
    return data.decode(tags(run_batches(model, data)))


def gradient_profile(loss: str, logits: torch.Tensor, target: torch.Tensor, bins: int = 50) -> dict[str, list]:
    """How the decisions' gradient norms g = 1 - p are distributed, and what gradient the loss makes of each.

    `counts`: decisions per bin of g. `norm`, `effective`: mean g and mean |dL/dx_target| of each non-empty bin,
    L being the sum over the decisions: what cross entropy maps to g itself, the other losses bend.
    """
    logits = logits.clone().requires_grad_()
    criterion(loss)(logits, target, reduction="sum").backward()
    chosen = target[:, None]
    effective = logits.grad.gather(1, chosen).squeeze(1).abs().double().numpy()
    norm = 1 - logits.detach().double().softmax(-1).gather(1, chosen).squeeze(1).numpy()
    index = np.minimum((norm * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    return {
        "counts": counts.tolist(),
        "norm": (np.bincount(index, norm, bins)[filled] / counts[filled]).tolist(),
        "effective": (np.bincount(index, effective, bins)[filled] / counts[filled]).tolist(),
    }


def save(model: TwoPointerModel, vocabulary: Vocabulary, directory: str | Path) -> None:
    """Writes config.json, the weights and vocab.txt."""
    model.save_pretrained(directory)
    vocabulary.save(directory)


def load(directory: str | Path) -> tuple[TwoPointerModel, Vocabulary]:
    """Reads back what `save` wrote."""
    if not Path(directory, "config.json").is_file():
        raise DataError(f"{directory} holds no config.json; it should be a directory that `fastloss train` saved.")
    quieten()
    model = load_model(str(directory))
    if not hasattr(model.config, "piece_length"):
        raise DataError(f"{directory} is an encoder without trained heads; it should be saved by `fastloss train`.")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), Vocabulary.from_pretrained(str(directory))
