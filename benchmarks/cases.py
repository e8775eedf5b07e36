"""What is timed: the losses, the shapes they meet in practice, and every contender's way to compute them."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastloss
from fastloss import reference


@dataclass(frozen=True)
class Contender:
    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype
    destroys_logits: bool = False  # they are restored before each call, untimed
    scale: float = 1.0  # its loss over the reference's


@dataclass(frozen=True)
class Loss:
    function: str  # in fastloss and in fastloss.reference
    settings: dict
    eager: Callable[[Tensor, Tensor], Tensor] | None = None  # PyTorch's own function, where it has one


LOSSES = {
    "cross entropy": Loss("cross_entropy", {}, F.cross_entropy),
    "label smoothing": Loss("cross_entropy", {"label_smoothing": 0.1}, partial(F.cross_entropy, label_smoothing=0.1)),
    "soft targets": Loss("cross_entropy", {}, F.cross_entropy),
    "focal": Loss("focal_loss", {"gamma": 2.0}),
    "focal 1.5": Loss("focal_loss", {"gamma": 1.5}),
    "GHM-C": Loss("ghmc_loss", {"bins": 10}),
    # Summed, as detectors do, which divide by the number of boxes themselves.
    "sigmoid focal": Loss("sigmoid_focal_loss", {"reduction": "sum"}),
    "asymmetric": Loss("asymmetric_loss", {}),
    "sigmoid GHM-C": Loss("sigmoid_ghmc_loss", {"bins": 10}),
}

SOFTMAX_SHAPES = [
    (6400, 11),  # NER: 50 sentences of 128 characters, ten types and O
    (65536, 11),  # NER, a large batch: no longer in the L2 cache
    (3001, 37),  # neither a multiple of any register's width
    (8192, 1000),  # ImageNet
    (2048, 32000),  # a language model's vocabulary
    (4, 150, 128, 128),  # ADE20K segmentation: the class dimension is strided
]
SIGMOID_SHAPES = [
    (2000, 80),  # the boxes of one small picture
    (100000, 80),  # RetinaNet's anchors, COCO's classes
]


def is_sigmoid(loss: str) -> bool:
    return loss.startswith(("sigmoid", "asymmetric"))


@dataclass(frozen=True)
class Case:
    loss: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    threads: int
    device: str

    def __str__(self):
        shape = "x".join(map(str, self.shape))
        where = f"{self.threads}threads" if self.device == "cpu" else self.device
        return f"{self.loss.replace(' ', '_')}-{shape}-{dtype_name(self.dtype)}-{where}"

    @property
    def is_sigmoid(self):
        return is_sigmoid(self.loss)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def all_cases() -> list[Case]:
    places = [("cpu", 2), ("cpu", 1)] + [("cuda", 0)] * torch.cuda.is_available()
    return [
        Case(loss, shape, dtype, threads, device)
        for device, threads in places
        for dtype in (torch.float32, torch.bfloat16)
        for loss in LOSSES
        for shape in (SIGMOID_SHAPES if is_sigmoid(loss) else SOFTMAX_SHAPES)
    ]


def make_inputs(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(case.device).manual_seed(0)
    options = {"generator": generator, "device": case.device}
    logits = (2 * torch.randn(case.shape, **options)).to(case.dtype)
    if case.is_sigmoid:
        return logits, (torch.rand(case.shape, **options) < 0.02).float()
    if case.loss == "soft targets":
        return logits, (3 * torch.randn(case.shape, **options)).softmax(1).to(case.dtype)
    num_decisions, num_classes, *inner = case.shape
    return logits, torch.randint(num_classes, (num_decisions, *inner), **options)


def reference_loss(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    loss = LOSSES[case.loss]
    return partial(getattr(reference, loss.function), **loss.settings)


def contenders(case: Case) -> list[Contender]:
    loss = LOSSES[case.loss]
    fused = partial(getattr(fastloss, loss.function), **loss.settings)
    found = [
        Contender("torch.compile", torch.compile(reference_loss(case), dynamic=False), case.dtype),
        Contender("eager", loss.eager or reference_loss(case), case.dtype),
        Contender("fastloss", fused, case.dtype),
        Contender("fastloss in place", partial(fused, inplace_backward=True), case.dtype, destroys_logits=True),
    ]
    if case.dtype == torch.float32:
        # In the same run, so that the two precisions can be compared.
        found.append(Contender("fastloss bfloat16", fused, torch.bfloat16))
        found += [make(case.dtype) for make in OTHERS_CODE.get(case.loss, [])]
    if case.device == "cuda" and len(case.shape) == 2 and case.loss in ("cross entropy", "label smoothing"):
        found += cuda_libraries(case)
    return found


# ---- what people run today, written from its description


def weight_by_loop(gradient_norm: Tensor, bins: int) -> Tensor:
    """GHM-C's weights the usual way: a pass over all decisions and a wait for the device for every bin."""
    weight, num_filled = torch.zeros_like(gradient_norm), 0
    for b in range(bins):
        upper = (b + 1) / bins if b + 1 < bins else 1 + 1e-6
        inside = (gradient_norm >= b / bins) & (gradient_norm < upper)
        count = inside.sum().item()
        if count > 0:
            weight[inside] = gradient_norm.numel() / count
            num_filled += 1
    return weight / num_filled


def article_ghmc(input: Tensor, target: Tensor) -> Tensor:
    """GHM-C of the article that the NER comparison follows; its hard-coded bins make it a tenth of ours."""
    p = input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    weight = weight_by_loop((1 - p).detach(), 10) / 10
    return (weight * -p.log()).mean()


def mmdetection_ghmc(input: Tensor, target: Tensor) -> Tensor:
    weight = weight_by_loop((input.sigmoid().detach() - target).abs(), 10)
    return F.binary_cross_entropy_with_logits(input, target, weight, reduction="sum") / input.numel()


def torchvision_focal(input: Tensor, target: Tensor, alpha=0.25, gamma=2.0) -> Tensor:
    p = input.sigmoid()
    bce = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_target = p * target + (1 - p) * (1 - target)
    alpha_target = alpha * target + (1 - alpha) * (1 - target)
    return (alpha_target * (1 - p_target) ** gamma * bce).sum()


def authors_asymmetric(input: Tensor, target: Tensor) -> Tensor:
    positive, negative = input.sigmoid(), (1 - input.sigmoid() + 0.05).clamp(max=1)
    likelihood = target * positive.clamp(min=1e-8).log() + (1 - target) * negative.clamp(min=1e-8).log()
    p_target = positive * target + negative * (1 - target)
    return -((1 - p_target) ** (4 * (1 - target)) * likelihood).sum()


OTHERS_CODE = {
    "asymmetric": [partial(Contender, "its authors' code", authors_asymmetric)],
    "GHM-C": [partial(Contender, "article's loop", article_ghmc, scale=0.1)],
    "sigmoid focal": [partial(Contender, "torchvision", torchvision_focal)],
    "sigmoid GHM-C": [partial(Contender, "mmdetection's loop", mmdetection_ghmc)],
}


def cuda_libraries(case: Case) -> list[Contender]:
    """The fused cross entropies that are installed."""
    smoothing = LOSSES[case.loss].settings.get("label_smoothing", 0.0)
    found = []
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        loss = LigerCrossEntropyLoss(label_smoothing=smoothing)
        found.append(Contender("Liger", loss, case.dtype, destroys_logits=True))
    if importlib.util.find_spec("apex") and importlib.util.find_spec("xentropy_cuda"):
        from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

        def apex(input, target):
            return SoftmaxCrossEntropyLoss.apply(input, target, smoothing, -100, True).mean()

        found.append(Contender("apex", apex, case.dtype))
    if importlib.util.find_spec("quack") and smoothing == 0:
        from quack.cross_entropy import cross_entropy

        found.append(Contender("quack", partial(cross_entropy, reduction="mean"), case.dtype))
    return found
