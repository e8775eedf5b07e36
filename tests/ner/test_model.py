"""Shapes and loss of the two-pointer model, and loading of pretrained encoders."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from fastloss.ner.data import DataError, Sentence, Span
from fastloss.ner.encode import IGNORE, NUM_TAGS, SPECIAL, TAG_OF, EncodedSentences, Vocabulary, collate
from fastloss.ner.model import load_model, tiny_model
from fastloss.ner.train import LOSSES, Settings, build, criterion, load, predict, save

TEXTS = [Sentence("小李在青城路", (Span("name", 0, 1), Span("address", 3, 5))), Sentence("在")]


@pytest.fixture
def vocabulary():
    return Vocabulary([*SPECIAL, *"小李在青城路"])


@pytest.fixture
def model(vocabulary):
    torch.manual_seed(0)
    return tiny_model(len(vocabulary.tokens), layers=1, hidden=32, max_length=16).eval()


@pytest.fixture
def batch(vocabulary):
    data = EncodedSentences(TEXTS, vocabulary, 16)
    return collate([data[0], data[1]])


def test_logits_are_per_token_head_and_tag(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])["logits"]
    assert logits.shape == (2, 8, 2, NUM_TAGS)


def test_without_a_criterion_there_is_no_loss(model, batch):
    assert "loss" not in model(**batch)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_mean_of_both_heads_over_active_tokens(model, batch, loss):
    model.criterion = criterion(loss)
    output = model(**batch)
    active = batch["labels"][..., 0] != IGNORE
    assert active.sum() == 7
    heads = [
        criterion(loss)(output["logits"][active][:, head], batch["labels"][active][:, head], reduction="mean")
        for head in range(2)
    ]
    torch.testing.assert_close(output["loss"], (heads[0] + heads[1]) / 2)


def test_cross_entropy_is_torchs(model, batch):
    model.criterion = criterion("ce")
    output = model(**batch)
    expected = F.cross_entropy(output["logits"].flatten(0, 2), batch["labels"].flatten())
    torch.testing.assert_close(output["loss"], expected)


def test_the_step_wide_count_replaces_the_batchs_own(model, batch):
    model.criterion = criterion("ce")
    whole = model(**batch)["loss"]
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(28))["loss"], whole / 2)


def test_padding_changes_neither_logits_nor_gradient(model, batch, vocabulary):
    model.criterion = criterion("ce")
    alone = collate([EncodedSentences(TEXTS[1:], vocabulary, 16)[0]])
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
    other["labels"][0, 1, 0] = 5
    guessed = [model(**inputs)["logits"] for inputs in (batch, other)]
    torch.testing.assert_close(guessed[0], guessed[1])
    model.train()
    model.dropout.p = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    told = [model(**inputs)["logits"] for inputs in (batch, other)]
    torch.testing.assert_close(told[0][:, :, 0], told[1][:, :, 0])
    changed = (told[0][:, :, 1] != told[1][:, :, 1]).any(-1)
    assert changed.nonzero().tolist() == [[0, 1]]


@pytest.fixture
def checkpoint(vocabulary, tmp_path):
    """What a hub's BERT looks like on disk: an encoder with a pooler, no heads, and a vocabulary."""
    directory = tmp_path / "checkpoint"
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary.tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    encoder = BertModel(config)
    encoder.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(vocabulary.tokens) + "\n", encoding="utf-8")
    return directory, encoder


def test_a_pretrained_encoder_keeps_its_weights_and_characters_their_positions(checkpoint, small_corpus):
    directory, encoder = checkpoint
    settings = Settings(encoder=str(directory), max_length=16)
    model, vocabulary = build(settings, small_corpus)
    ids = torch.tensor([vocabulary.encode("小李在x青")])
    assert ids.tolist() == [[2, 5, 6, 7, 1, 8, 3]]
    with torch.no_grad():
        expected = encoder.eval()(ids).last_hidden_state
        torch.testing.assert_close(model.eval().bert(ids).last_hidden_state, expected)


def test_a_tokenizer_file_serves_where_there_is_no_vocab_txt(checkpoint, tmp_path):
    from transformers import BertTokenizer

    directory, _ = checkpoint
    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "vocab.txt").unlink(missing_ok=True)
    tokens = (directory / "vocab.txt").read_text("utf-8").split()
    assert Vocabulary.from_pretrained(str(tmp_path / "tokenizer")).tokens == tokens


def test_a_longer_input_than_the_encoder_takes_is_an_error(checkpoint, small_corpus):
    with pytest.raises(DataError, match=r"--max-length is 128, but .* takes at most 16 tokens"):
        build(Settings(encoder=str(checkpoint[0]), max_length=128), small_corpus)


def test_what_cannot_be_an_encoder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        load_model(str(tmp_path))
    config = RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    with pytest.raises(DataError, match="is a roberta model; it should be a BERT"):
        load_model(str(tmp_path / "roberta"))


def test_a_saved_model_predicts_the_same(model, vocabulary, tmp_path):
    model.config.piece_length = 16
    texts = [Sentence("小李在青城路" * 4), Sentence("青城")]
    with torch.no_grad():
        model.start.bias[TAG_OF["name"]] = model.end[-1].bias[TAG_OF["name"]] = 1.0
    expected = predict(model, vocabulary, texts)
    assert all(expected)
    save(model, vocabulary, tmp_path / "model")
    assert predict(*load(tmp_path / "model"), texts) == expected


def test_loading_what_training_did_not_save_is_an_error(checkpoint, tmp_path):
    with pytest.raises(DataError, match=r"holds no config\.json"):
        load(tmp_path)
    with pytest.raises(DataError, match="an encoder without trained heads"):
        load(checkpoint[0])
