"""Shapes and loss of the two-pointer model, and saving and loading."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fastloss.ner.data import Sentence, Span
from fastloss.ner.encode import IGNORE, EncodedSentences, collate
from fastloss.ner.inference import load, predict, save
from fastloss.ner.losses import DEFAULT_LOSSES, make_criterion, parse_loss
from fastloss.ner.model import TwoPointerConfig, TwoPointerModel, tiny_model
from fastloss.ner.tokens import train_tokenizer

TEXTS = [Sentence("小李在青城路", (Span("name", 0, 1), Span("address", 3, 5))), Sentence("在")]
TYPES = ["address", "name"]
TAGS = 3


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS * 2, characters=True)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = TwoPointerConfig(types=TYPES, piece_length=16)
    return tiny_model(len(tokenizer.tokenizer), layers=1, hidden=32, config=config).eval()


@pytest.fixture
def batch(tokenizer):
    data = EncodedSentences(TEXTS, tokenizer, 16, TYPES)
    return collate([data[0], data[1]], tokenizer.pad_id)


def criteria(spec):
    return tuple(make_criterion(parse_loss(spec), torch.ones(TAGS)) for _ in range(2))


def test_logits_are_per_token_head_and_tag(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])["logits"]
    assert logits.shape == (2, 8, 2, TAGS)


def test_without_a_criterion_there_is_no_loss(model, batch):
    assert "loss" not in model(**batch)


@pytest.mark.parametrize("spec", DEFAULT_LOSSES)
def test_the_loss_is_the_mean_of_both_heads_over_active_tokens(model, batch, spec):
    model.criteria = criteria(spec)
    output = model(**batch)
    active = batch["labels"][..., 0] != IGNORE
    assert active.sum() == 7
    heads = [
        criteria(spec)[0].eval()(output["logits"][active][:, head], batch["labels"][active][:, head])
        for head in range(2)
    ]
    torch.testing.assert_close(output["loss"], (heads[0] + heads[1]) / 14)


def test_cross_entropy_is_torchs(model, batch):
    model.criteria = criteria("ce")
    output = model(**batch)
    expected = F.cross_entropy(output["logits"].flatten(0, 2), batch["labels"].flatten())
    torch.testing.assert_close(output["loss"], expected)


def test_the_step_wide_count_replaces_the_batchs_own(model, batch):
    model.criteria = criteria("ce")
    whole = model(**batch)["loss"]
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(28))["loss"], whole / 2)


def test_each_head_has_a_state_of_its_own_that_moves_in_training_only(model, batch):
    model.criteria = criteria("ghmc:bins=30,momentum=0.9")
    model.eval()(**batch)
    assert all(head.loss.num_updates.sum() == 0 for head in model.criteria)
    model.train()(**batch)
    first, second = (head.loss.running_histogram for head in model.criteria)
    assert first.sum() > 0 and second.sum() > 0 and not torch.equal(first, second)
    assert not any("running" in name for name in model.state_dict())


def test_padding_changes_neither_logits_nor_gradient(model, batch, tokenizer):
    model.criteria = criteria("ce")
    alone = collate([EncodedSentences(TEXTS[1:], tokenizer, 16, TYPES)[0]], tokenizer.pad_id)
    padded = {name: tensor[1:] for name, tensor in batch.items()}
    gradients = []
    for inputs in (alone, padded):
        model.zero_grad()
        output = model(**inputs)
        output["loss"].backward()
        gradients.append((output["logits"][:, :3].detach(), model.start.weight.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_end_head_sees_true_starts_in_training_and_its_own_guess_otherwise(model, batch):
    # Only the start tags of the labels may matter, and only in training.
    other = {**batch, "labels": batch["labels"].clone()}
    other["labels"][0, 1, 0] = 1
    guessed = [model(**inputs)["logits"] for inputs in (batch, other)]
    torch.testing.assert_close(guessed[0], guessed[1])
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    told = [model(**inputs)["logits"] for inputs in (batch, other)]
    torch.testing.assert_close(told[0][:, :, 0], told[1][:, :, 0])
    changed = (told[0][:, :, 1] != told[1][:, :, 1]).any(-1)
    assert changed.nonzero().tolist() == [[0, 1]]


def test_a_saved_model_predicts_the_same(model, tokenizer, tmp_path):
    texts = [Sentence("小李在青城路" * 4), Sentence("青城")]
    with torch.no_grad():
        model.start.bias[2] = model.end[-1].bias[2] = 1.0
    expected = predict(model, tokenizer, texts)
    assert all(expected)
    save(model, tokenizer, tmp_path / "model")
    assert predict(*load(tmp_path / "model"), texts) == expected


def descend(model, part, decisions, ranks):
    """The loss of some steps on a part of the batch, as the Trainer forms it on each rank."""
    seen = []
    for _ in range(3):
        model.zero_grad()
        loss = ranks * model(**part, num_items_in_batch=decisions)["loss"]
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad
        seen.append(loss.detach())
    return torch.stack(seen)


def without_dropout(state, config, spec):
    model = TwoPointerModel(config).train()
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.criteria = criteria(spec)
    for criterion in model.criteria:
        criterion.across_ranks = True
    return model


def train_on_a_rank(rank, ranks, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    try:
        state, config, batch, decisions = torch.load(f"{folder}/given", weights_only=False)
        part = {name: tensor[rank::ranks] for name, tensor in batch.items()}
        curves = {}
        for spec in DEFAULT_LOSSES:
            model = DistributedDataParallel(without_dropout(state, config, spec))
            curves[spec] = descend(model, part, decisions, ranks)
        torch.save(curves, f"{folder}/{rank}")
        dist.barrier()  # nobody leaves while another still waits for an answer
    finally:
        dist.destroy_process_group()


def test_ranks_have_the_loss_curve_of_one_process(model, batch, tmp_path):
    """GHM-C too, whose histogram is that of all ranks."""
    decisions = (batch["labels"] != IGNORE).sum()
    torch.save((model.state_dict(), model.config, batch, decisions), tmp_path / "given")
    mp.spawn(train_on_a_rank, (2, str(tmp_path)), 2)
    curves = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for spec in DEFAULT_LOSSES:
        alone = descend(without_dropout(model.state_dict(), model.config, spec), batch, decisions, 1)
        torch.testing.assert_close((curves[0][spec] + curves[1][spec]) / 2, alone, rtol=1e-4, atol=1e-6)
