"""The `fastloss` command: compare, train, evaluate, predict, data, study and info."""

import argparse
import errno
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastloss
from fastloss.ner.data import DataError
from fastloss.ner.losses import DEFAULT_LOSSES, KINDS, Loss, parse_loss

# Modules of the extra `fastloss[ner]`, which the losses alone do not need.
EXTRA = ("numpy", "transformers", "accelerate", "matplotlib", "tqdm", "jinja2")
DEFAULT_SEEDS = [42, 1, 2]
# Training until nothing more is learnt has to end somewhere.
MOST_EPOCHS = 60


def main(arguments: list[str] | None = None) -> None:
    """Runs one subcommand; what a user or a disk can get wrong ends as one sentence and exit code 2."""
    options = make_parser().parse_args(arguments)
    try:
        if options.command == "info":
            print_info()
        else:
            require_extra()
            from fastloss.ner import commands

            getattr(commands, options.command)(options)
        sys.stdout.flush()
    except DataError as error:
        fail(str(error))
    except KeyboardInterrupt:
        hint = " Run it again with --resume to keep the finished runs." if hasattr(options, "resume") else ""
        print(f"\nInterrupted.{hint}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`).
        drop_output()
    except OSError as error:
        if error.filename is None:
            drop_output()
        name = "the output" if error.filename is None else error.filename
        fail(f"{name} cannot be used: {error.strerror or os.strerror(error.errno or errno.EIO)}.")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def drop_output() -> None:
    """Python would complain about what it cannot write when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str) -> None:
    print(f"fastloss: {message}", file=sys.stderr)
    sys.exit(2)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastloss", description="Trains an NER model with each loss; which one wins?")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=argparse.RawTextHelpFormatter)
        sub.set_defaults(command=name)
        return sub

    sub = command("compare", "train once per loss and seed, and report which loss wins")
    add_data(sub)
    add_training(sub, rates=True)
    add_losses(sub)
    add_runs(sub, "fastloss-report")

    sub = command("study", "compare the losses against label noise and thinned rare types (builtin data)")
    add_training(sub, rates=False)
    add_losses(sub)
    add_runs(sub, "fastloss-study")
    sub.add_argument(
        "--noise", nargs="+", type=share, default=[0.0, 0.1, 0.2], help="shares of wrong labels (0 0.1 0.2)"
    )
    sub.add_argument("--thin", nargs="+", type=portion, default=[1.0, 1 / 4, 1 / 16], help="shares kept (1 1/4 1/16)")

    sub = command("train", "train with one loss and save the model")
    add_data(sub)
    add_training(sub, rates=False)
    sub.add_argument("--loss", type=loss, default="ce", help="as in compare --losses (%(default)s)")
    sub.add_argument("--seed", type=seed, default=42, help="default: %(default)s")
    sub.add_argument("--out", type=Path, default=Path("fastloss-model"), help="model directory (%(default)s)")

    sub = command("evaluate", "score a saved model on the dev sentences")
    sub.add_argument("model", type=Path, help="directory that `fastloss train` saved")
    add_data(sub)

    sub = command("predict", "print the entities of each line as a JSON line")
    sub.add_argument("model", type=Path, help="directory that `fastloss train` saved")
    sub.add_argument(
        "input", nargs="?", type=Path, help="text lines, or JSON lines with a text if named *.json; default: stdin"
    )

    sub = command("data", "print what a corpus holds and what is wrong with it")
    add_data(sub)
    sub.add_argument("--encoder", default=argparse.SUPPRESS, help="whose tokenizer to look through (tiny)")
    sub.add_argument("--max-length", type=positive(int), default=argparse.SUPPRESS, help="in tokens (128)")
    sub.add_argument("--write", type=Path, metavar="DIR", help="also write train.json and dev.json there")

    command("info", "print what was built and chosen for this machine")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        default="builtin",
        help="directory with a train and a dev file: CLUENER's .json, .jsonl with spans,\n"
        "or CoNLL columns (.conll .txt .bio .iob .tsv); or builtin (default)",
    )
    parser.add_argument(
        "--label-noise", type=share, default=0.0, metavar="SHARE", help="builtin: share of wrong labels in train"
    )
    parser.add_argument(
        "--thin",
        type=portion,
        default=1.0,
        metavar="SHARE",
        help="builtin: share kept of train's rarer types' sentences",
    )


def add_losses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--losses",
        nargs="+",
        type=loss,
        metavar="LOSS",
        default=[parse_loss(spec) for spec in DEFAULT_LOSSES],
        help=f"{', '.join(KINDS)}, with settings: lsr:0.05 focal:gamma=1 ce:weight=balanced\n"
        f"or a class of your own: package.module:Class; default: {' '.join(DEFAULT_LOSSES)}",
    )


def add_runs(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--seeds", nargs="+", type=seed, default=DEFAULT_SEEDS, metavar="SEED", help="default: 42 1 2")
    parser.add_argument("--out", type=Path, default=Path(out), help="report directory (%(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="keep the finished runs of --out that have these settings"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also log to OUT/tensorboard")


def add_training(parser: argparse.ArgumentParser, rates: bool) -> None:
    def add(flag: str, **options: Any) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, **options)

    add("--encoder", help="tiny (default: a small BERT from scratch), a local directory or a hub name")
    add("--layers", type=positive(int), help="tiny: layers (2)")
    add("--hidden", type=positive(int), help="tiny: width (128)")
    add("--max-length", type=positive(int), help="longest input in tokens (128); longer texts are cut into pieces")
    add("--epochs", type=positive(int), help=f"8; with --until-flat the most ({MOST_EPOCHS})")
    add("--until-flat", action="store_true", help="train until a held-out tenth of train is learnt no better")
    add("--patience", type=positive(int), help="--until-flat: epochs without a gain before the end (3)")
    add("--batch-size", type=positive(int), help="sentences per step and device (tiny 32, pretrained 128)")
    more = {"nargs": "+", "metavar": "RATE"} if rates else {}
    listed = "; of several each loss gets its best on a held-out tenth of train" if rates else ""
    add("--learning-rate", type=positive(float), help=f"tiny 2e-3, pretrained 5e-5; decays{listed}", **more)
    add("--warmup", type=share, help="share of the steps the learning rate rises in (tiny 0.1, pretrained 0)")
    add("--accumulation", type=positive(int), help="batches per optimizer step (1)")
    add("--bf16", action="store_true", help="mixed precision in bfloat16")
    add("--fp16", action="store_true", help="mixed precision in float16")


def positive(number: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
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


def portion(text: str) -> float:
    top, _, bottom = text.partition("/")
    value = float(top) / float(bottom or 1) if float(bottom or 1) else 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} should be above 0 and at most 1, as in 1/4")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} should be at least 0 and below 2**32")
    return value


def loss(text: str) -> Loss:
    # A class of one's own is looked for where the command is run, too.
    sys.path.append(os.getcwd())
    try:
        return parse_loss(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error).replace("%", "%%")) from None
    finally:
        sys.path.pop()


def require_extra() -> None:
    """Training needs more than the losses do; says what to install where it is missing."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"this command needs {', '.join(missing)}: pip install 'fastloss[ner]'")
    warnings.filterwarnings("ignore", module="transformers|accelerate|torch|matplotlib")


def print_info() -> None:
    for name, value in fastloss.build_info().items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name.replace('_', ' '):20}{shown}")
