"""The `fastloss` command: compare, train, evaluate, predict, data and info."""

import argparse
import importlib.util
import json
import os
import shlex
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import torch

import fastloss
from fastloss.ner.data import (
    TYPES,
    Corpus,
    DataError,
    Sentence,
    count_types,
    describe,
    read_corpus,
    read_sentences,
    to_record,
    unseen_share,
)
from fastloss.ner.synthetic import generate

# Modules of the extra `fastloss[ner]`, which the losses alone do not need.
EXTRA = ("numpy", "transformers", "accelerate", "matplotlib", "tqdm")
LOSS_NAMES = ("ce", "lsr", "focal", "ghmc")


def main(arguments: list[str] | None = None) -> None:
    """Runs one subcommand; what a user can get wrong ends as one sentence and exit code 2."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except DataError as error:
        fail(str(error))
    except KeyboardInterrupt:
        hint = " Run it again with --resume to keep the finished runs." if options.run is run_compare else ""
        print(f"\nInterrupted.{hint}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        fail(f"{error.filename} cannot be used: {error.strerror}.")


def fail(message: str) -> None:
    print(f"fastloss: {message}", file=sys.stderr)
    sys.exit(2)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastloss", description="Trains an NER model with each loss; which one wins?")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=argparse.RawTextHelpFormatter)
        sub.set_defaults(run=run)
        return sub

    sub = command("compare", run_compare, "train once per loss and seed, and report which loss wins")
    add_data(sub)
    add_training(sub)
    sub.add_argument("--losses", nargs="+", choices=LOSS_NAMES, default=list(LOSS_NAMES), help="default: all four")
    sub.add_argument("--seeds", nargs="+", type=seed, default=[42], metavar="SEED", help="default: 42")
    sub.add_argument("--out", type=Path, default=Path("fastloss-report"), help="report directory (%(default)s)")
    sub.add_argument("--resume", action="store_true", help="keep the finished runs of --out that have these settings")

    sub = command("train", run_train, "train with one loss and save the model")
    add_data(sub)
    add_training(sub)
    sub.add_argument("--loss", choices=LOSS_NAMES, default="ce", help="default: %(default)s")
    sub.add_argument("--seed", type=seed, default=42, help="default: %(default)s")
    sub.add_argument("--out", type=Path, default=Path("fastloss-model"), help="model directory (%(default)s)")

    sub = command("evaluate", run_evaluate, "score a saved model on the dev sentences")
    sub.add_argument("model", type=Path, help="directory that `fastloss train` saved")
    add_data(sub)

    sub = command("predict", run_predict, "print the entities of each line as a JSON line")
    sub.add_argument("model", type=Path, help="directory that `fastloss train` saved")
    sub.add_argument(
        "input", nargs="?", type=Path, help="text lines, or JSON lines with a text if named *.json; default: stdin"
    )

    sub = command("data", run_data, "print how many mentions of each type a corpus holds")
    add_data(sub)
    sub.add_argument("--write", type=Path, metavar="DIR", help="also write train.json and dev.json there")

    command("info", run_info, "print what was built and chosen for this machine")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", default="builtin", help="directory with CLUENER's train.json and dev.json, or builtin (default)"
    )
    parser.add_argument(
        "--label-noise", type=share, default=0.0, metavar="SHARE", help="builtin: share of wrong labels in train"
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    def add(flag: str, **options):
        parser.add_argument(flag, default=argparse.SUPPRESS, **options)

    add("--encoder", help="tiny (default: a small BERT from scratch), a local directory or a hub name")
    add("--layers", type=positive(int), help="tiny: layers (2)")
    add("--hidden", type=positive(int), help="tiny: width (128)")
    add("--max-length", type=positive(int), help="longest input in tokens (128); longer texts are cut into pieces")
    add("--epochs", type=positive(int), help="8")
    add("--batch-size", type=positive(int), help="sentences per step and device (tiny 32, pretrained 128)")
    add("--learning-rate", type=positive(float), help="tiny 2e-3, pretrained 5e-5; decays linearly")
    add("--warmup", type=share, help="share of the steps the learning rate rises in (tiny 0.1, pretrained 0)")
    add("--accumulation", type=positive(int), help="batches per optimizer step (1)")
    add("--bf16", action="store_true", help="mixed precision in bfloat16")
    add("--fp16", action="store_true", help="mixed precision in float16")


def positive(number: type):
    def parse(text: str):
        value = number(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} should be greater than 0")
        return value

    parse.__name__ = "number"
    return parse


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 0 and below 1")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} should be at least 0 and below 2**32")
    return value


def load_corpus(options: argparse.Namespace) -> Corpus:
    if options.data == "builtin":
        return generate(label_noise=options.label_noise)
    if options.label_noise:
        raise DataError(f"--label-noise is {options.label_noise}, but it is for the builtin data only.")
    return read_corpus(options.data)


def require_extra() -> None:
    """Training needs more than the losses do; says what to install where it is missing."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"this command needs {', '.join(missing)}: pip install 'fastloss[ner]'")
    warnings.filterwarnings("ignore", module="transformers|accelerate|torch")


def read_settings(options: argparse.Namespace):
    """The encoder's defaults, overridden by the flags that were given."""
    from fastloss.ner.train import PRETRAINED, Settings

    given = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    settings = replace(Settings() if given.get("encoder", "tiny") == "tiny" else PRETRAINED, **given)
    if settings.bf16 and settings.fp16:
        raise DataError("--bf16 and --fp16 are both given; there should be one of them.")
    if settings.fp16 and not torch.cuda.is_available():
        raise DataError("--fp16 is given, but float16 training needs a CUDA device; --bf16 runs on the CPU too.")
    if settings.encoder == "tiny" and settings.hidden % 32:
        raise DataError(f"--hidden is {settings.hidden}, but it should be a multiple of 32, the width of a head.")
    if settings.max_length < 8:
        raise DataError(f"--max-length is {settings.max_length}, but it should be at least 8.")
    return settings


def run_compare(options: argparse.Namespace) -> None:
    require_extra()
    from fastloss.ner.compare import compare
    from fastloss.ner.report import terminal_table, verdicts, write_report
    from fastloss.ner.train import is_main_process

    settings = read_settings(options)
    losses, seeds = list(dict.fromkeys(options.losses)), list(dict.fromkeys(options.seeds))
    options.out.mkdir(parents=True, exist_ok=True)
    results = compare(load_corpus(options), losses, seeds, settings, options.out, options.resume)
    if is_main_process():
        command = shlex.join(["fastloss", *sys.argv[1:]])
        summary = write_report(results, options.out, options.data, command)
        print(terminal_table(summary, options.data, settings.encoder))
        for sentence in verdicts(summary):
            print(sentence)
        print(f"Report: {options.out / 'report.md'}")


def run_train(options: argparse.Namespace) -> None:
    require_extra()
    from fastloss.ner.train import is_main_process, save, train

    settings = read_settings(options)
    options.out.mkdir(parents=True, exist_ok=True)
    model, vocabulary, result = train(load_corpus(options), options.loss, options.seed, settings)
    if is_main_process():
        save(model, vocabulary, options.out)
        print_scores(result["metrics"])
        print(f"Model: {options.out}")


def run_evaluate(options: argparse.Namespace) -> None:
    require_extra()
    from fastloss.ner.metrics import evaluate_spans
    from fastloss.ner.train import load, predict

    model, vocabulary = load(options.model)
    dev = load_corpus(options).dev
    print_scores(evaluate_spans(dev, predict(model, vocabulary, dev)))


def print_scores(scores: dict) -> None:
    for name, row in [*scores["types"].items(), ("micro", scores["micro"])]:
        print(f"{name:13}precision {row['precision']:.4f}  recall {row['recall']:.4f}  F1 {row['f1']:.4f}")
    print(f"CLUENER's official score (distinct surfaces, macro over types): {scores['official']:.4f}")


def run_predict(options: argparse.Namespace) -> None:
    require_extra()
    from fastloss.ner.train import load, predict

    model, vocabulary = load(options.model)
    sentences = read_input(options.input)
    for first in range(0, len(sentences), 256):
        chunk = sentences[first : first + 256]
        for sentence, spans in zip(chunk, predict(model, vocabulary, chunk), strict=True):
            print(json.dumps(to_record(Sentence(sentence.text, tuple(sorted(spans)))), ensure_ascii=False))


def read_input(path: Path | None) -> list[Sentence]:
    if path is not None and path.suffix in (".json", ".jsonl"):
        return read_sentences(path, labelled=False)
    try:
        raw = sys.stdin.buffer.read() if path is None else path.read_bytes()
        return [Sentence(line) for line in raw.decode("utf-8-sig").split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path or 'the standard input'} is not UTF-8 text: {error.reason}.") from None


def run_data(options: argparse.Namespace) -> None:
    corpus = load_corpus(options)
    width = 12
    print(" " * 30 + "".join(name.rjust(width + 1) for name in (*TYPES, "all")))
    for part, sentences in corpus._asdict().items():
        for label, counts in zip(("distinct surfaces", "mentions"), count_types(sentences), strict=True):
            cells = [*(counts[type_] for type_ in TYPES), sum(counts.values())]
            print(f"{part}, {label}".ljust(30) + "".join(str(cell).rjust(width + 1) for cell in cells))
    for part, sentences in corpus._asdict().items():
        facts = describe(sentences)
        facts["start positions"] = f"{facts['start positions']:.1%}"
        print(f"{part}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"dev mentions whose surface is no entity of train: {unseen_share(corpus):.1%}")
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        for part, sentences in corpus._asdict().items():
            lines = "".join(json.dumps(to_record(s), ensure_ascii=False) + "\n" for s in sentences)
            (options.write / f"{part}.json").write_text(lines, encoding="utf-8")


def run_info(options: argparse.Namespace) -> None:
    for name, value in fastloss.build_info().items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name.replace('_', ' '):20}{shown}")
