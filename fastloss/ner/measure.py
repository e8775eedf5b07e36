"""Everything that is known about a trained model, as one JSON-ready record."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fastloss.ner.diagnosis import calibration, errors, gradient_norms, head_scores
from fastloss.ner.encode import EncodedSentences
from fastloss.ner.inference import predict, run_batches
from fastloss.ner.losses import IGNORE, Loss, make_criterion
from fastloss.ner.metrics import evaluate_spans, micro_f1, sentence_counts
from fastloss.ner.train import Run, Settings


def measure(run: Run) -> dict[str, Any]:
    """Scores on dev with all that explains them; the F1 on as many training sentences shows over- and underfitting."""
    dev, types = run.dev_set.sentences, run.model.config.types
    batches = list(run_batches(run.model, run.dev_set))
    predictions = run.dev_set.decode([piece for logits, _ in batches for piece in logits.argmax(-1).numpy()])
    logits = torch.cat([logits[labels[..., 0] != IGNORE] for logits, labels in batches])
    target = torch.cat([labels[labels[..., 0] != IGNORE] for _, labels in batches])
    # A learning rate that was too high leaves weights that are not finite; such a run is a result too, of zeros.
    diverged = not bool(logits.isfinite().all())
    logits = logits.nan_to_num(0.0, 0.0, 0.0)
    train = run.train_set.sentences[: len(dev)]
    return run.record | {
        "diverged": diverged,
        "metrics": evaluate_spans(dev, predictions, types),
        "sentence_counts": sentence_counts(dev, predictions).tolist(),
        "train_f1": micro_f1(train, predict(run.model, run.tokenizer, train)),
        "heads": head_scores(logits, target),
        "errors": errors(dev, predictions),
        "calibration": calibration(logits, target),
        "gradient_norms": gradient_norms(logits, target),
    }


def time_loss(loss: Loss, train_set: EncodedSentences, settings: Settings) -> dict[str, Any]:
    """Seconds a training step spends in the loss: both heads, forward and backward, on an average batch's logits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = round(settings.batch_size * np.mean([len(feature["input_ids"]) for feature in train_set.features]))
    classes = len(train_set.types) + 1
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(rows, classes, generator=generator).to(device).requires_grad_() for _ in range(2)]
    target = torch.randint(0, classes, (rows,), generator=generator).to(device)
    criteria = [make_criterion(loss, train_set.tag_counts()).to(device) for _ in range(2)]
    return {"rows": rows, "classes": classes, "seconds": time_step(criteria, logits, target)}


def time_step(
    criteria: Sequence[Callable[..., Any]], logits: list[torch.Tensor], target: torch.Tensor, repeats: int = 50
) -> float:
    """The median over repeats."""

    def step() -> float:
        began = time.perf_counter()
        for x in logits:
            x.grad = None
        sum(criterion(x, target) for criterion, x in zip(criteria, logits, strict=True)).backward()
        if logits[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(5):
        step()
    return float(np.median([step() for _ in range(repeats)]))
