"""Dense detection: sigmoid focal loss and GHM-C where a few of thousands of places are objects.

    python examples/detection.py

A small network says for each cell of a grid whether an object of each of three kinds is centred there, as one-stage
detectors do at every anchor. Nearly all decisions are easy negatives: with plain binary cross entropy their sum is most
of the gradient. Focal loss divides by the number of objects, as RetinaNet does; GHM-C keeps running statistics of the
gradient norms, with mmdetection's settings. Cells next to a centre are neither right nor wrong, so GHM-C masks them,
and focal loss takes them as soft targets.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import fastloss

KINDS = 3


def make_scenes(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, size, size), and 1 where an object of a kind has its centre (count, KINDS, size, size)."""
    center = torch.zeros(count, KINDS, size, size)
    image = torch.zeros(count, size, size)
    stamps = torch.tensor(
        [
            [[1, 1, 1], [1, 0, 1], [1, 1, 1]],
            [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
            [[0, 1, 0], [1, 1, 1], [0, 1, 0]],
        ]
    )
    for scene in range(count):
        for kind in range(KINDS):
            y, x = torch.randint(1, size - 1, (2,)).tolist()
            center[scene, kind, y, x] = 1
            image[scene, y - 1 : y + 2, x - 1 : x + 2] = stamps[kind].float()
    return image[:, None] + 0.3 * torch.randn(count, 1, size, size), center


def neighbours(center: torch.Tensor) -> torch.Tensor:
    return (F.max_pool2d(center, 3, stride=1, padding=1) > 0) & (center == 0)


def make_network() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, KINDS, 1)
    )
    # An object is rare: start from a probability of 1%, as RetinaNet does.
    nn.init.constant_(network[-1].bias, -4.6)
    return network


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=32, help="cells in height and width")
    options = parser.parse_args()

    ghmc = fastloss.SigmoidGHMCLoss(bins=30, momentum=0.75, bias_correction=False)

    def cross_entropy(logits, center):
        return F.binary_cross_entropy_with_logits(logits, center)

    def focal(logits, center):
        soft = center + 0.3 * neighbours(center)
        return fastloss.sigmoid_focal_loss(
            logits, soft, alpha=0.25, gamma=2.0, denominator=center.sum(), reduction="mean"
        )

    def harmonised(logits, center):
        return ghmc(logits, center, mask=~neighbours(center))

    torch.manual_seed(0)
    image, center = make_scenes(100, options.size)
    print(f"{center.mean():.2%} of the decisions are objects\n{'loss':22} objects found among the most likely cells")
    for name, criterion in (("binary cross entropy", cross_entropy), ("focal", focal), ("GHM-C", harmonised)):
        torch.manual_seed(1)
        network = make_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(options.steps):
            batch, truth = make_scenes(8, options.size)
            optimizer.zero_grad()
            criterion(network(batch), truth).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 35)  # mmdetection's for GHM-C
            optimizer.step()
        with torch.no_grad():
            logits = network(image)
        best = logits.flatten(2).argmax(-1, keepdim=True)  # of each kind there is one object
        found = center.flatten(2).gather(-1, best).mean()
        print(f"{name:22} {found:.1%}")


if __name__ == "__main__":
    main()
