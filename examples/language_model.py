"""A language model's fine-tuning step without its logits: linear_cross_entropy in place of lm_head and loss.

    python examples/language_model.py

The logits of a batch, tokens × vocabulary, and their gradient are the largest tensors of such a step. fastloss takes
the hidden states through the head in chunks and keeps no logits. The model is a GPT-2 with random weights; a loaded one
is used the same way. Each way runs in a process of its own, which says how much memory it took beyond the model.
"""

import argparse
import multiprocessing
import resource
import time

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import fastloss


def whole_logits(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def chunks(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    hidden = model.transformer(tokens).last_hidden_state[:, :-1]
    return fastloss.linear_cross_entropy(hidden, model.lm_head.weight, tokens[:, 1:])


LOSSES = {"logits, then F.cross_entropy": whole_logits, "fastloss.linear_cross_entropy": chunks}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(name: str, options: argparse.Namespace, results) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=options.vocabulary, n_positions=options.length, n_embd=128, n_layer=2, n_head=4, resid_pdrop=0.0
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(options.vocabulary, (options.batch, options.length))
    before = peak_bytes()
    losses = []
    for _ in range(options.steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = LOSSES[name](model, tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    results.put((losses, time.perf_counter() - start, peak_bytes() - before))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()

    size = 4 * options.vocabulary * options.batch * options.length / 2**20
    print(f"float32 logits of a batch: {size:.0f} MiB\n{'':32} {'peak memory':>12} {'last step':>10}   losses")
    for name in LOSSES:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=train, args=(name, options, results))
        process.start()
        losses, seconds, memory = results.get()
        process.join()
        print(f"{name:32} {memory / 2**20:8.0f} MiB {seconds:8.2f} s  ", *(f"{loss:.4f}" for loss in losses))


if __name__ == "__main__":
    main()
