"""What the `fastloss` commands do, one function each, from the parsed options."""

import argparse
import importlib.util
import json
import os
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from fastloss.ner import compare as comparison
from fastloss.ner.cli import MOST_EPOCHS
from fastloss.ner.compare import Runs, count_runs
from fastloss.ner.data import Corpus, DataError, Sentence, is_cluener, make_sentence, to_record, types_of
from fastloss.ner.inference import is_main_process, load, save
from fastloss.ner.inference import predict as predict_spans
from fastloss.ner.inspection import inspect_corpus
from fastloss.ner.metrics import evaluate_spans
from fastloss.ner.progress import Progress
from fastloss.ner.readers import read_corpus, read_lines, read_sentences
from fastloss.ner.report import terminal_table, write_report
from fastloss.ner.study import study_corpora, write_study
from fastloss.ner.summary import headline, summarize, verdicts
from fastloss.ner.synthetic import generate, thin
from fastloss.ner.train import PRETRAINED, Settings
from fastloss.ner.train import train as train_model


def load_corpus(options: argparse.Namespace) -> Corpus:
    if options.data == "builtin":
        return thin(generate(label_noise=options.label_noise), options.thin)
    for flag, value, nothing in (("--label-noise", options.label_noise, 0.0), ("--thin", options.thin, 1.0)):
        if value != nothing:
            raise DataError(f"{flag} is {value:g}, but it is for the builtin data only.")
    return read_corpus(options.data)


def read_settings(options: argparse.Namespace) -> tuple[Settings, list[float]]:
    """The encoder's defaults, overridden by the flags that were given, and the learning rates to choose from."""
    given = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    settings = Settings() if given.get("encoder", "tiny") == "tiny" else PRETRAINED
    if given.get("until_flat"):
        given.setdefault("epochs", MOST_EPOCHS)
    rates = given.pop("learning_rate", settings.learning_rate)
    rates = list(dict.fromkeys(rates)) if isinstance(rates, list) else [rates]
    settings = replace(settings, **given, learning_rate=rates[0])
    if settings.bf16 and settings.fp16:
        raise DataError("--bf16 and --fp16 are both given; there should be one of them.")
    if settings.fp16 and not torch.cuda.is_available():
        raise DataError("--fp16 is given, but float16 training needs a CUDA device; --bf16 runs on the CPU too.")
    if settings.encoder == "tiny" and settings.hidden % 32:
        raise DataError(f"--hidden is {settings.hidden}, but it should be a multiple of 32, the width of a head.")
    if settings.max_length < 8:
        raise DataError(f"--max-length is {settings.max_length}, but it should be at least 8.")
    if getattr(options, "tensorboard", False) and importlib.util.find_spec("tensorboard") is None:
        raise DataError("--tensorboard is given, but TensorBoard is not installed: pip install tensorboard")
    return settings, rates


def compare(options: argparse.Namespace) -> None:
    settings, rates = read_settings(options)
    corpus = load_corpus(options)
    losses, seeds = unique(options.losses), unique(options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    announce(options.data, corpus, losses, seeds, rates, settings)
    progress = Progress(count_runs(losses, seeds, rates), settings.until_flat)
    runs = Runs(options.out, options.resume, progress, options.tensorboard)
    results = comparison.compare(corpus, losses, seeds, settings, rates, runs)
    if is_main_process():
        summary = summarize(results, corpus)
        write_report(results, summary, options.out, options.data, shlex.join(["fastloss", *sys.argv[1:]]))
        print(terminal_table(summary))
        for sentence in verdicts(summary):
            print(sentence)
        print(headline(summary))
        print(f"Report: {options.out / 'report.html'}")


def study(options: argparse.Namespace) -> None:
    settings, rates = read_settings(options)
    losses, seeds = unique(options.losses), unique(options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    corpora = study_corpora(options.noise, options.thin)
    progress = Progress(len(corpora) * count_runs(losses, seeds, rates), settings.until_flat)
    results = {}
    for condition, corpus in corpora.items():
        announce(condition.label, corpus, losses, seeds, rates, settings)
        runs = Runs(options.out / condition.label, options.resume, progress, options.tensorboard)
        results[condition] = comparison.compare(corpus, losses, seeds, settings, rates, runs)
    if is_main_process():
        print(write_study(results, options.out, shlex.join(["fastloss", *sys.argv[1:]])))
        print(f"Report: {options.out / 'study.md'}")


def unique(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]


def announce(
    data: str, corpus: Corpus, losses: list[Any], seeds: list[int], rates: list[float], settings: Settings
) -> None:
    """What will be trained, and, on a busy machine, what slows it down."""
    if not is_main_process():
        return
    tuned = f", after {len(rates)} learning rates each" if len(rates) > 1 else ""
    steps = -(-len(corpus.train) // (settings.batch_size * settings.accumulation))
    print(
        f"{data}: {len(corpus.train)} train and {len(corpus.dev)} dev sentences, {len(types_of(*corpus))} types; "
        f"{len(losses)} losses × {len(seeds)} seeds{tuned}, {'at most ' if settings.until_flat else ''}"
        f"{settings.epochs} epochs of about {steps} steps.",
        file=sys.stderr,
    )
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    if threads > 1 and load + threads > (os.cpu_count() or 1) + 0.5 and "OMP_WAIT_POLICY" not in os.environ:
        print(
            f"The machine is busy (load {load:.1f} on {os.cpu_count()} CPUs), and {threads} OpenMP threads that spin "
            "while they wait get slow beside others: OMP_WAIT_POLICY=passive or OMP_NUM_THREADS=1 mends it.",
            file=sys.stderr,
        )


def train(options: argparse.Namespace) -> None:
    settings, _ = read_settings(options)
    corpus = load_corpus(options)
    options.out.mkdir(parents=True, exist_ok=True)
    announce(options.data, corpus, [options.loss], [options.seed], [settings.learning_rate], settings)
    lines = Progress(1, settings.until_flat).begin(options.loss.name)
    run = train_model(corpus, options.loss, options.seed, settings, lines)
    if is_main_process():
        save(run.model, run.tokenizer, options.out)
        print(f"Model: {options.out}")
        print_scores(corpus, predict_spans(run.model, run.tokenizer, corpus.dev))


def evaluate(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model)
    corpus = load_corpus(options)
    print_scores(corpus, predict_spans(model, tokenizer, corpus.dev))


def print_scores(corpus: Corpus, predictions: list[Any]) -> None:
    found = {span.type for spans in predictions for span in spans}
    scores = evaluate_spans(corpus.dev, predictions, sorted(found.union(types_of(corpus.dev))))
    rows = [*scores["types"].items(), ("micro", scores["micro"])]
    width = max(len(name) for name, _ in rows) + 2
    for name, row in rows:
        print(
            f"{name:{width}}precision {row['precision']:.4f}  recall {row['recall']:.4f}  F1 {row['f1']:.4f}  "
            f"support {row['support']}"
        )
    if is_cluener(corpus):
        print(f"CLUENER's official score (distinct surfaces, macro over types): {scores['official']:.4f}")


def predict(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model)
    sentences = read_input(options.input)
    for first in range(0, len(sentences), 256):
        chunk = sentences[first : first + 256]
        for sentence, spans in zip(chunk, predict_spans(model, tokenizer, chunk), strict=True):
            print(json.dumps(to_record(make_sentence(sentence.text, spans)), ensure_ascii=False))


def read_input(path: Path | None) -> list[Sentence]:
    if path is not None and path.suffix in (".json", ".jsonl"):
        return read_sentences(path, labelled=False)
    lines = read_lines(path) if path is not None else read_lines(None, sys.stdin.buffer.read())
    return [Sentence(line) for line in lines if line.strip()]


def data(options: argparse.Namespace) -> None:
    settings, _ = read_settings(options)
    corpus = load_corpus(options)
    print(inspect_corpus(corpus, settings))
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        for part, sentences in corpus._asdict().items():
            lines = "".join(json.dumps(to_record(s), ensure_ascii=False) + "\n" for s in sentences)
            (options.write / f"{part}.json").write_text(lines, encoding="utf-8")
