"""Multi-label classification where labels are rare: focal losses against binary cross entropy, by precision and recall.

    python examples/multilabel.py --plot precision-recall.png

Each of the labels that scikit-learn generates holds for a few per cent of the samples. All losses of this kind are the
same call: `gamma` says how little an easy decision counts, and `alpha` how positives weigh against negatives.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import PrecisionRecallDisplay, average_precision_score
from sklearn.model_selection import train_test_split
from torch import nn

import fastloss

LABELS = 30


def make_data(samples: int) -> list[torch.Tensor]:
    """Features and labels for training, then for testing."""
    x, y = make_multilabel_classification(
        samples, n_features=60, n_classes=LABELS, n_labels=2, length=30, allow_unlabeled=True, random_state=0
    )
    x_train, x_test, y_train, y_test = train_test_split(
        torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), random_state=0
    )
    scale = x_train.std(0)
    return [x_train / scale, y_train, x_test / scale, y_test]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--plot", help="a file for the precision-recall curves")
    options = parser.parse_args()

    x_train, y_train, x_test, y_test = make_data(options.samples)
    print(f"{y_train.mean():.1%} of the labels hold\n{'loss':22} average precision")
    losses = {
        "binary cross entropy": F.binary_cross_entropy_with_logits,
        "focal": fastloss.SigmoidFocalLoss(alpha=0.25, gamma=2.0, reduction="mean"),
        "focal, alpha = 0.75": fastloss.SigmoidFocalLoss(alpha=0.75, gamma=2.0, reduction="mean"),
        "asymmetric": fastloss.AsymmetricLoss(reduction="mean"),
        "GHM-C": fastloss.SigmoidGHMCLoss(bins=10, momentum=0.9),
    }
    curves = {}
    for name, criterion in losses.items():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(x_train.shape[1], 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, LABELS))
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for _ in range(options.epochs):
            for batch in torch.randperm(len(x_train)).split(64):
                optimizer.zero_grad()
                criterion(network(x_train[batch]), y_train[batch]).backward()
                optimizer.step()
        network.eval()
        with torch.no_grad():
            curves[name] = network(x_test).sigmoid()
        print(f"{name:22} {average_precision_score(y_test, curves[name], average='micro'):.3f}")

    if options.plot:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots()
        for name, probability in curves.items():
            PrecisionRecallDisplay.from_predictions(y_test.flatten(), probability.flatten(), name=name, ax=axes)
        plt.savefig(options.plot)


if __name__ == "__main__":
    main()
