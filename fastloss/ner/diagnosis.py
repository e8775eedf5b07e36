"""What goes wrong where: errors by kind, confused types, the worst sentences, calibration, gradients, their noise."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fastloss.ner.data import Sentence, Span
from fastloss.ner.encode import EncodedSentences
from fastloss.ner.losses import IGNORE

ERROR_KINDS = ("missed", "spurious", "start", "end", "both edges", "type", "type and edge")
NONE = "none"


def pair_up(gold: set[Span], predicted: set[Span]) -> list[tuple[Span | None, Span | None]]:
    """Pairs each wrong prediction with the gold span that it overlaps most; what is left has no partner.

    Spans that are right are left out.
    """
    missed, wrong = gold - predicted, predicted - gold
    overlaps = [(min(g.end, p.end) - max(g.start, p.start) + 1, g.type == p.type, g, p) for g in missed for p in wrong]
    pairs = []
    for overlap, _, g, p in sorted(overlaps, reverse=True):
        if overlap > 0 and g in missed and p in wrong:
            missed, wrong = missed - {g}, wrong - {p}
            pairs.append((g, p))
    return [*pairs, *((g, None) for g in sorted(missed)), *((None, p) for p in sorted(wrong))]


def error_kind(gold: Span | None, predicted: Span | None) -> str:
    if gold is None or predicted is None:
        return "spurious" if gold is None else "missed"
    start, end = gold.start != predicted.start, gold.end != predicted.end
    if gold.type != predicted.type:
        return "type and edge" if start or end else "type"
    return "both edges" if start and end else "start" if start else "end"


def errors(sentences: list[Sentence], predictions: list[set[Span]], worst: int = 8) -> dict[str, Any]:
    """Counts per kind of error, [gold type, predicted type, count] of each confusion, and the worst sentences."""
    kinds: Counter[str] = Counter()
    confusion: Counter[tuple[str, str]] = Counter()
    ranked = []
    for index, (sentence, predicted) in enumerate(zip(sentences, predictions, strict=True)):
        gold = set(sentence.spans)
        pairs = pair_up(gold, predicted)
        kinds.update(error_kind(*pair) for pair in pairs)
        confusion.update((g.type if g else NONE, p.type if p else NONE) for g, p in pairs)
        confusion.update((span.type, span.type) for span in gold & predicted)
        ranked.append((-len(pairs), index))
    return {
        "kinds": {kind: kinds[kind] for kind in ERROR_KINDS},
        "confusion": [[*pair, count] for pair, count in sorted(confusion.items())],
        "worst": [
            {"text": sentences[i].text, "gold": sorted(sentences[i].spans), "predicted": sorted(predictions[i])}
            for wrong, i in sorted(ranked)[:worst]
            if wrong
        ],
    }


def head_scores(logits: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """F1 of the tags other than O, of the start and of the end head; logits [N, 2, K], target [N, 2]."""
    found, right = logits.argmax(-1) > 0, logits.argmax(-1) == target
    correct, all_ = (found & right).sum(0), found.sum(0) + (target > 0).sum(0)
    return dict(zip(("start", "end"), (2 * correct / all_.clamp(min=1)).tolist(), strict=True))


def calibration(logits: torch.Tensor, target: torch.Tensor, bins: int = 10) -> dict[str, Any]:
    """The decisions that found a tag (not O), by confidence: mean confidence, accuracy and count per bin, and the ECE.

    ECE (Guo et al. 2017): the mean distance of accuracy and confidence, weighted by the bins' counts. `ece_all` is
    that of all decisions, nearly all of which are easy O.
    """

    def expected_error(chosen: torch.Tensor) -> tuple[float, list[dict[str, Any]]]:
        confidence, right = confidences[chosen].numpy(), correct[chosen].numpy()
        index = np.minimum((confidence * bins).astype(int), bins - 1)
        count = np.bincount(index, minlength=bins)
        sums = [np.bincount(index, values, bins) for values in (confidence, right)]
        rows = [
            {"confidence": float(c / n), "accuracy": float(a / n), "count": int(n)}
            for c, a, n in zip(*sums, count, strict=True)
            if n
        ]
        gaps = [abs(row["confidence"] - row["accuracy"]) * row["count"] for row in rows]
        return float(sum(gaps) / max(count.sum(), 1)), rows

    confidences, tags = logits.flatten(0, 1).double().softmax(-1).max(-1)
    correct = (tags == target.flatten()).double()
    everything, _ = expected_error(torch.ones_like(tags, dtype=torch.bool))
    found, rows = expected_error(tags > 0)
    return {"ece": found, "ece_all": everything, "bins": rows}


def gradient_norms(logits: torch.Tensor, target: torch.Tensor, bins: int = 20) -> dict[str, list[int]]:
    """How many decisions lie in each bin of the gradient norm g = 1 - p, O apart from the entities' tags."""
    target = target.flatten()
    norm = 1 - logits.flatten(0, 1).double().softmax(-1).gather(1, target[:, None]).squeeze(1)
    index = (norm * bins).long().clamp(0, bins - 1)
    parts = {"O": target == 0, "entity": target > 0}
    return {name: torch.bincount(index[part], minlength=bins).tolist() for name, part in parts.items()}


def batch_profile(model: Any, batches: list[dict[str, Any]], criterion: nn.Module, bins: int = 20) -> dict[str, Any]:
    """How a loss weighs the start head's decisions from batch to batch, and how noisy its gradient is.

    The weight of a decision is its gradient |dL/dx_target| over that of cross entropy, g = 1 - p. Returns `weight`,
    a row a batch of the mean weight per bin of g (None: an empty bin), `count`, the mean number of decisions per bin,
    and `noise`: the mean squared distance of a batch's gradient from their mean, over the mean's own square, for
    the start head's matrix. The model is not changed.
    """
    states = []
    hook = model.start.register_forward_hook(lambda _, inputs, __: states.append(inputs[0].detach()))
    rows, counts, gradients = [], [], []
    training, criteria, model.criteria = model.training, model.criteria, ()
    model.train()
    try:
        for batch in batches:
            with torch.no_grad():
                logits = model(**batch)["logits"][:, :, 0]
            active = batch["labels"][..., 0] != IGNORE
            logits, target = logits[active].float().requires_grad_(), batch["labels"][..., 0][active]
            criterion(logits, target).backward()
            gradients.append((logits.grad.T @ states.pop()[active].float() / len(target)).flatten().double())
            norm = 1 - logits.detach().double().softmax(-1).gather(1, target[:, None]).squeeze(1)
            effective = logits.grad.double().gather(1, target[:, None]).squeeze(1).abs()
            index = torch.nan_to_num(norm * bins).long().clamp(0, bins - 1)
            count, norms, effects = (torch.bincount(index, weights, bins) for weights in (None, norm, effective))
            rows.append((effects / norms.clamp(min=1e-9)).where(count > 0, torch.nan))
            counts.append(count)
    finally:
        hook.remove()
        model.train(training)
        model.criteria = criteria
    stacked = torch.stack(gradients)
    mean = stacked.mean(0)
    noise = (stacked - mean).square().sum(1).mean() / mean.square().sum()
    return {
        "weight": [[finite(value) for value in row.tolist()] for row in rows],
        "count": torch.stack(counts).double().mean(0).tolist(),
        "noise": finite(noise.item()),
    }


def sample_batches(
    data: EncodedSentences, batch_size: int, collate: Callable[..., dict[str, Any]], batches: int = 50
) -> list[dict[str, Any]]:
    """The same random batches of a data set every time."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    chunks = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [collate([data[index] for index in chunk]) for chunk in chunks[:batches]]


def finite(value: float) -> float | None:
    """The number to four digits, or None where JSON has none for it."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
