"""How far from the truth: the error of every loss and its gradient beside that of PyTorch, as a table in Markdown.

`make accuracy` writes docs/error-table.md. The truth is fastloss.reference in float64 (for float64 logits: numpy's long
double). PyTorch is its own function where there is one (F.cross_entropy), else the same formula in eager PyTorch, in
the type that it would compute in: float32 for bfloat16 and float16 logits converted by hand, or the half type itself.

Errors are in units in the last place: of the compute type at the size of the decision's loss (at least 1), and of the
logits' dtype at the size of the largest element of a decision's gradient. 1 ULP of float32 is 1.2e-7 of that.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import fastloss
from fastloss import reference

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

SHAPES = [(6400, 11), (512, 1000), (64, 32000), (16, 131072)]
SOFTMAX = {
    "cross entropy": ("cross_entropy", {}),
    "label smoothing 0.1": ("cross_entropy", {"label_smoothing": 0.1}),
    "focal, gamma 2": ("focal_loss", {"gamma": 2.0}),
    "focal, gamma 0.7": ("focal_loss", {"gamma": 0.7}),
    "GHM-C": ("ghmc_loss", {}),
}
SIGMOID = {
    "sigmoid focal, gamma 2": ("sigmoid_focal_loss", {}),
    "sigmoid focal, gamma 0.7": ("sigmoid_focal_loss", {"gamma": 0.7}),
    "sigmoid GHM-C": ("sigmoid_ghmc_loss", {}),
}


def one_against_the_rest(classes):
    """A row with one logit 0 and the others -1.2: many equal terms, whose sum shows how it is added up."""
    x = torch.full((1, classes), -1.2)
    x[0, 0] = 0
    return x


def differentiate(function, x, target, **settings):
    x = x.detach().requires_grad_()
    loss = function(x, target, reduction="none", **settings)
    loss.sum().backward()
    return loss.detach().double(), x.grad.double()


def errors(got, truth, compute, dtype):
    """(largest error of the loss in ULP of compute, of the gradient in ULP of dtype); truth's gradient [N, C]."""
    loss = ((got[0] - truth[0]).abs() / truth[0].abs().clamp(min=1)).max().item() / torch.finfo(compute).eps
    info = torch.finfo(dtype)
    scale = truth[1].abs().amax(-1, keepdim=True).clamp(min=info.smallest_normal)
    return loss, ((got[1] - truth[1]).abs() / scale).max().item() / info.eps


def clear_of_edges(norm, bins=10):
    scaled = norm * bins
    return (scaled - scaled.round()).abs() > 1e-3


def rows():
    """(loss, shape, dtype, errors of ours, of PyTorch, or None where it is the truth)."""
    for title, (name, settings) in {**SOFTMAX, **SIGMOID}.items():
        sigmoid = name.startswith("sigmoid")
        for shape in [(100000, 1)] if sigmoid else SHAPES:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                torch.manual_seed(0)
                x = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
                target = torch.randint(2, shape) if sigmoid else torch.randint(shape[1], shape[:1])
                if "ghmc" in name:  # a decision in another bin is another loss, not an error
                    p = x.double().sigmoid() if sigmoid else x.double().softmax(1)
                    norm = (p - target).abs() if sigmoid else 1 - p.gather(1, target[:, None])[:, 0]
                    keep = clear_of_edges(norm if not sigmoid else norm[:, 0])
                    x, target = x[keep], target[keep]
                truth = differentiate(getattr(reference, name), x.double(), target, **settings)
                if dtype == torch.float64:
                    truth = in_long_double(name, x, target, settings) or truth
                plain = getattr(F, name) if name == "cross_entropy" else getattr(reference, name)
                compute = torch.float32 if dtype.itemsize == 2 else dtype
                ours = differentiate(getattr(fastloss, name), x, target, **settings)
                is_truth = dtype == torch.float64 and "ghmc" in name
                torchs = truth if is_truth else differentiate(plain, x, target, **settings)
                # Gradients end in the logits' dtype: its rounding is not an error of the loss.
                yield (
                    title,
                    shape,
                    str(dtype).removeprefix("torch."),
                    errors(ours, truth, compute, dtype),
                    (None, None) if torchs is truth else errors(torchs, truth, compute, dtype),
                )


def in_long_double(name, x, target, settings):
    """The oracle of the fuzz tests, but for GHM-C, whose weights are float64's own."""
    import numpy as np

    numbers = x.numpy().astype(np.longdouble)
    info = np.finfo(np.float64)
    if name in ("cross_entropy", "focal_loss"):
        settings = {"smoothing" if key == "label_smoothing" else key: value for key, value in settings.items()}
        found = oracle.softmax_decisions(numbers, target.numpy(), info, **settings)
    elif name == "sigmoid_focal_loss":
        settings = {"alpha": 0.25, "gamma": 2.0, **settings}
        found = oracle.sigmoid_decisions(numbers[:, 0], target.numpy()[:, 0].astype(np.longdouble), info, **settings)
    else:
        return None
    loss, grad = (torch.from_numpy(part.astype(np.float64)) for part in (found.value, found.derivative))
    return loss.view(target.shape), grad.view(x.shape)


def long_rows():
    """(classes, nll's error of ours, of F.cross_entropy) of one_against_the_rest."""
    for classes in (1000, 32000, 65536, 131072, 1 << 20, 1 << 24):
        x, target = one_against_the_rest(classes), torch.zeros(1, dtype=torch.long)
        truth = F.cross_entropy(x.double(), target)
        yield classes, *(abs(f(x, target).double() - truth).item() for f in (fastloss.cross_entropy, F.cross_entropy))


def number(n):
    if n is None:
        return ""
    return f"{n:.2f}" if n < 100 else f"{n:.3g}"


def write(out):
    info = fastloss.build_info()
    print("# Table of errors\n", file=out)
    print(
        "Largest errors against float64 (for float64 logits: long double), in units in the last place: of the loss,\n"
        "of the compute type's (float32 for half logits) at max(1, loss); of the gradient, of the logits' dtype's, at\n"
        "the largest element of the decision's gradient. PyTorch: `F.cross_entropy`, whose loss of half logits is\n"
        "half; for the other losses their formula in eager PyTorch (`fastloss.reference`), which converts half logits\n"
        "to float32 as fastloss does, and is the truth of GHM-C in float64. Hundreds of units are where a prediction\n"
        "is nearly certain: the gradient is then as small as the rounding of `p - 1`, in either.\n"
        f"`make accuracy` wrote this, with torch {torch.__version__}, on {info['cpu_capability']}.\n",
        file=out,
    )
    print("| loss | logits | dtype | loss, ours | PyTorch | gradient, ours | PyTorch |", file=out)
    print("|---|---|---|--:|--:|--:|--:|", file=out)
    for title, shape, dtype, ours, torchs in rows():
        size = " × ".join(map(str, shape if shape[1] > 1 else shape[:1]))
        numbers = " | ".join(map(number, (ours[0], torchs[0], ours[1], torchs[1])))
        print(f"| {title} | {size} | {dtype} | {numbers} |", file=out)
    print("\nA long row of equal logits, one logit 0 and the others -1.2, float32: the error of the nll.\n", file=out)
    print("| classes | ours | `F.cross_entropy` |\n|--:|--:|--:|", file=out)
    for classes, ours, torchs in long_rows():
        print(f"| {classes} | {ours:.1e} | {torchs:.1e} |", file=out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a file; default: the terminal")
    args = parser.parse_args()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("w") as out:
            write(out)
    else:
        write(sys.stdout)


if __name__ == "__main__":
    main()
