"""A Lightning module whose loss is fastloss's GHM-C: running statistics that are saved, loaded and moved with it.

    python examples/lightning_module.py

scikit-learn's handwritten digits, of which some are made ten times as rare. The loss is a submodule like any other: its
running histogram is in the module's state_dict, is updated in training alone, and goes to the device of the rest.
"""

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastloss

RARE = 5  # digits from here on are thinned out
KEEP = 0.1


class Digits(L.LightningModule):
    def __init__(self, criterion: nn.Module):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.criterion = criterion

    def training_step(self, batch, _):
        image, digit = batch
        loss = self.criterion(self.network(image), digit)
        self.log("train_loss", loss)
        return loss

    def predict_step(self, batch, _):
        return self.network(batch[0]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def make_data() -> tuple[TensorDataset, TensorDataset]:
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.5, stratify=y, random_state=0)
    x_train, y_train = torch.tensor(x_train, dtype=torch.float32), torch.tensor(y_train)
    kept = (y_train < RARE) | (torch.rand(len(y_train), generator=torch.Generator().manual_seed(0)) < KEEP)
    test = TensorDataset(torch.tensor(x_test, dtype=torch.float32), torch.tensor(y_test))
    return TensorDataset(x_train[kept], y_train[kept]), test


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    train, test = make_data()
    counts = torch.bincount(train.tensors[1], minlength=10)
    print("training images of each digit:", *counts.tolist())
    criteria = {
        "cross entropy": fastloss.CrossEntropyLoss(),
        "class weights": fastloss.CrossEntropyLoss(weight=len(train) / (10 * counts.clamp(min=1))),
        "focal": fastloss.FocalLoss(gamma=2.0),
        "GHM-C": fastloss.GHMCLoss(bins=10, momentum=0.9),
    }
    for name, criterion in criteria.items():
        L.seed_everything(0, verbose=False)
        module = Digits(criterion)
        trainer = L.Trainer(
            max_epochs=options.epochs,
            accelerator="auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(train, batch_size=32, shuffle=True))
        predicted = torch.cat(trainer.predict(module, DataLoader(test, batch_size=256)))
        print(f"{name:14} balanced accuracy {balanced_accuracy_score(test.tensors[1], predicted):.3f}")


if __name__ == "__main__":
    main()
