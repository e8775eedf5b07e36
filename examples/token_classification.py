"""Token classification with Hugging Face's Trainer: a fastloss loss as its `compute_loss_func`.

    python examples/token_classification.py

A small BERT with random weights learns to tag generated sentences in which one word in twenty is a name or a place.
The Trainer counts the labels of a step (`num_items_in_batch`), accumulated batches included. The loss divides by that
number and not by its own batch's, so that accumulating gradients changes nothing.
"""

import argparse

import torch
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments

import fastloss

TAGS = ["O", "NAME", "PLACE"]
VOCABULARY = 200
NAMES = range(10, 20)  # words that are names; a name before STREET is a place
STREET = 1
IGNORED = -100


def make_sentences(count: int, length: int = 24) -> list[dict]:
    words = torch.randint(NAMES.start, VOCABULARY, (count, length))
    is_name = words < NAMES.stop
    is_name[:, -1] = False
    words[:, 1:][is_name[:, :-1] & (torch.rand(count, length - 1) < 0.5)] = STREET
    is_name &= words != STREET
    tags = torch.where(is_name, torch.where(words.roll(-1, 1) == STREET, 2, 1), 0)
    padded = torch.arange(length) >= torch.randint(length // 2, length + 1, (count, 1))
    tags[padded] = IGNORED
    return [
        {"input_ids": word, "attention_mask": ~padding, "labels": tag}
        for word, padding, tag in zip(words, padded, tags, strict=True)
    ]


def compute_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits.flatten(0, 1)
    # None in evaluation: the mean over the batch.
    return fastloss.focal_loss(logits, labels.flatten(), gamma=2.0, denominator=num_items_in_batch)


def scores(prediction) -> dict[str, float]:
    """Micro F1 of the tags that are not O."""
    predicted, true = prediction.predictions.argmax(-1), prediction.label_ids
    counted = true != IGNORED
    right = ((predicted == true) & counted & (true > 0)).sum()
    wanted, found = (true > 0).sum(), ((predicted > 0) & counted).sum()
    return {"f1": float(2 * right / (wanted + found))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--out", default="runs/token-classification", help="where checkpoints go")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=len(TAGS),
        id2label=dict(enumerate(TAGS)),
    )
    trainer = Trainer(
        model=BertForTokenClassification(config),
        args=TrainingArguments(
            options.out,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=2e-3,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=make_sentences(options.sentences),
        eval_dataset=make_sentences(500),
        compute_loss_func=compute_loss,
        compute_metrics=scores,
    )
    trainer.train()
    print(f"F1 on new sentences: {trainer.evaluate()['eval_f1']:.3f}")


if __name__ == "__main__":
    main()
