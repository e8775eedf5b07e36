"""What a run says while it trains: a bar where someone is watching, else lines; and how long all of it will take."""

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MINUTE = 60


class Progress:
    """The clock over all runs; the time left goes by the runs that were trained."""

    def __init__(self, runs: int, upper_bound: bool = False) -> None:
        self.runs = runs
        self.run = 0
        self.trained = 0
        self.at_most = "at most " if upper_bound else ""
        self.began = time.monotonic()

    def label(self, name: str) -> str:
        self.run += 1
        return f"run {self.run} of {self.runs}  {name}" if self.runs > 1 else name

    def skip(self, name: str, path: Path) -> None:
        print(f"{self.label(name)}  kept from {path}", file=sys.stderr)

    def begin(self, name: str) -> "RunLines":
        self.trained += 1
        return RunLines(self, self.label(name))

    def left(self, share: float) -> str:
        """The time left, from what this share of the current run and the trained runs before it took."""
        seconds = (time.monotonic() - self.began) / (self.trained - 1 + share)
        return f"{self.at_most}{duration(seconds * (self.runs - self.run + 1 - share))} left"


def duration(seconds: float) -> str:
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 60 * MINUTE:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / MINUTE / 60:.1f} h"


class RunLines(TrainerCallback):
    """One run's bar and lines, and the seconds that its steps take, evaluation left out."""

    def __init__(self, progress: Progress, label: str) -> None:
        self.progress = progress
        self.label = label
        self.bar = None
        self.step_seconds = 0.0
        self.step_began = 0.0
        self.last_line = time.monotonic()

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
        self.last_line = time.monotonic()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            steps = int(state.max_steps // args.num_train_epochs)
            self.bar = tqdm(total=steps, desc=self.label, leave=False, disable=not sys.stderr.isatty())

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_seconds += time.perf_counter() - self.step_began
        if self.bar is not None:
            self.bar.update()
            first_look = state.global_step == 20 and self.progress.trained == 1
            if first_look or (self.bar.disable and time.monotonic() - self.last_line > MINUTE):
                share = state.global_step / state.max_steps
                self.say(f"{self.label}  step {state.global_step}  {self.progress.left(share)}")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            train_loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
            self.say(
                f"{self.label}  epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  train loss {train_loss:.4f}  "
                f"dev loss {metrics['eval_loss']:.4f}  F1 {metrics['eval_f1']:.4f}  "
                + self.progress.left(state.global_step / state.max_steps)
            )
