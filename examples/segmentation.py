"""Segmentation: focal loss of logits (N, C, H, W), in place, on images where most pixels are background.

    python examples/segmentation.py

Bright rings, discs and crosses on noise cover a few per cent of a generated image. The class dimension is at 1, as in
F.cross_entropy, in contiguous or channels-last memory: nothing is permuted or copied. Nothing but the loss reads the
logits, so the gradient is written over them (`inplace_backward`), which halves the memory that the loss takes.
"""

import argparse

import torch
from torch import nn

import fastloss

CLASSES = ["background", "disc", "ring", "cross"]


def make_images(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, size, size) with one shape of each kind, and the class of each pixel (count, size, size)."""
    target = torch.zeros(count, size, size, dtype=torch.int64)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = size / 12
    for label in range(1, len(CLASSES)):
        center = torch.rand(count, 2, 1, 1) * (size - 4 * radius) + 2 * radius
        dy, dx = (y - center[:, 0]).abs(), (x - center[:, 1]).abs()
        distance = (dy**2 + dx**2).sqrt()
        shape = {
            "disc": distance < radius,
            "ring": (distance - radius).abs() < radius / 4,
            "cross": (torch.minimum(dy, dx) < radius / 4) & (torch.maximum(dy, dx) < radius),
        }[CLASSES[label]]
        target[shape] = label
    image = (target > 0).float()[:, None] + 0.5 * torch.randn(count, 1, size, size)
    return image, target


def make_network() -> nn.Module:
    def block(inputs: int, outputs: int, dilation: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 16, 1), *block(16, 16, 2), *block(16, 16, 4), *block(16, 16, 1)]
    return nn.Sequential(*layers, nn.Conv2d(16, len(CLASSES), 1))


@torch.no_grad()
def intersection_over_union(network: nn.Module, image: torch.Tensor, target: torch.Tensor) -> list[float]:
    predicted = network(image).argmax(1)
    ious = []
    for label in range(len(CLASSES)):
        both, either = (predicted == label) & (target == label), (predicted == label) | (target == label)
        ious.append((both.sum() / either.sum().clamp(min=1)).item())
    return ious


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="height and width of an image")
    options = parser.parse_args()

    torch.manual_seed(0)
    test = make_images(64, options.size)
    background = (test[1] == 0).float().mean()
    print(f"{background:.0%} of the pixels are background\n{'loss':14}", *(f"{name:>10}" for name in CLASSES))
    losses = {
        "cross entropy": fastloss.CrossEntropyLoss(inplace_backward=True),
        "focal": fastloss.FocalLoss(gamma=2.0, inplace_backward=True),
    }
    for name, criterion in losses.items():
        torch.manual_seed(1)
        network = make_network().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(options.steps):
            image, target = make_images(8, options.size)
            loss = criterion(network(image), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        print(f"{name:14}", *(f"{iou:10.3f}" for iou in intersection_over_union(network, *test)))


if __name__ == "__main__":
    main()
