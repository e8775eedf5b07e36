"""The figures of the pages, drawn with fastloss itself when the pages are built."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fastloss

# Legible on white and on black.
INK = "#808080"
COLORS = {"cross entropy": INK, "label smoothing": "#d9822b", "focal": "#2f8fd0", "GHM-C": "#c0508f"}
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "savefig.transparent": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "fastloss",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
CLASSES, BINS = 11, 10


def draw(folder: Path):
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        gradient_norms(folder / "gradient.svg")


def gradient_norms(path: Path):
    """What each loss makes of cross entropy's gradient norm, on a batch where most decisions are easy."""
    torch.manual_seed(0)
    # Probabilities of the target: nine in ten decisions are easy, some are hopeless.
    p = torch.cat([torch.rand(90000) ** 0.1, torch.rand(9000), torch.rand(1000) * 0.05]).clamp(1e-4, 1 - 1e-4)
    logits = torch.zeros(len(p), CLASSES)
    logits[:, 0] = torch.log(p * (CLASSES - 1) / (1 - p))
    target = torch.zeros(len(p), dtype=torch.int64)
    losses = {
        "cross entropy": fastloss.CrossEntropyLoss(reduction="sum"),
        "label smoothing": fastloss.CrossEntropyLoss(reduction="sum", label_smoothing=0.1),
        "focal": fastloss.FocalLoss(gamma=2.0, reduction="sum"),
        "GHM-C": fastloss.GHMCLoss(bins=BINS, reduction="sum"),
    }
    norm, order = (1 - p).sort()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.hist(norm, bins=BINS, color=INK, alpha=0.6)
    left.set(yscale="log", xlabel="gradient norm of cross entropy, 1 - p", ylabel="decisions", title="a batch")
    for name, loss in losses.items():
        x = logits.clone().requires_grad_()
        loss(x, target).backward()
        # The gradient at the target's logit: - f'(nll) (1 - p), and what smoothing adds.
        pull = -x.grad[order, 0]
        right.plot(norm, pull / pull.abs().sum() * len(p), color=COLORS[name], label=name)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set(
        xlabel="gradient norm of cross entropy, 1 - p",
        ylabel="pull on the target's logit",
        title="what each loss makes of it",
    )
    right.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
