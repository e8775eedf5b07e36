"""The histogram of gradient norms: every decision counted once, where the reference counts it."""

import torch
from cases import DTYPES, IGNORE, WIDE, ignore_bin_edges, layouts, make_softmax

import fastloss
from fastloss import reference


def test_equals_reference(device):
    for dtype in DTYPES:
        for shape in [(100, 11), (30, WIDE), (3, 7, 4, 5), (0, 3), (6,)]:
            for bins in (1, 7, 10, 300):
                x, target = make_softmax(shape, dtype, device)
                target = ignore_bin_edges(x, target, bins)
                for _, view in layouts(x) if x.numel() else [("", x)]:
                    counts = fastloss.gradient_norm_histogram(view, target, bins=bins)
                    assert counts.dtype == torch.int64 and counts.sum() == (target != IGNORE).sum()
                    assert torch.equal(counts, reference.gradient_norm_histogram(view, target, bins=bins))


def test_counts_many(device):
    """More decisions than one thread's share; a count above float32's integers stays exact."""
    x = torch.zeros(2**18 + 5, 2, device=device)
    x[: 2**18, 0] = 5.0
    counts = fastloss.gradient_norm_histogram(x, torch.zeros(len(x), dtype=torch.int32, device=device))
    assert counts.tolist() == [2**18, 0, 0, 0, 0, 5, 0, 0, 0, 0]


def test_has_no_gradient(device):
    x, target = make_softmax((5, 3), device=device)
    counts = fastloss.gradient_norm_histogram(x.requires_grad_(), target)
    assert not counts.requires_grad
