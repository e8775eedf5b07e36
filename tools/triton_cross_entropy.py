"""Cross entropy and its gradient in Triton, as most would write it: the peer of fastloss in tools/gpu_check.py.

A program a row; one pass for the running maximum and sum, one for the gradient, which is written over the logits.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def kernel(logits, grad, target, loss, scale, classes: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * classes
    grad += row * classes
    label = tl.load(target + row)
    largest, total = -float("inf"), 0.0
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher))
        largest = higher
    lse = largest + tl.log(total)
    tl.store(loss + row, (lse - tl.load(logits + label).to(tl.float32)) * scale)
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
        g = (tl.exp(x - lse) - (k == label)) * scale
        tl.store(grad + k, g.to(grad.dtype.element_ty), mask=k < classes)


def loss_and_gradient(logits, target):
    """The mean over rows of [N, C] logits, and its gradient."""
    rows, classes = logits.shape
    grad = torch.empty_like(logits)
    loss = torch.empty(rows, device=logits.device)
    block = min(triton.next_power_of_2(classes), 16384)
    kernel[(rows,)](logits, grad, target, loss, 1 / rows, classes, BLOCK=block, num_warps=min(max(block // 512, 1), 16))
    return loss.sum(), grad
