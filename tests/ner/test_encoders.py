"""Any encoder with its own fast tokenizer: tiny checkpoints of eight kinds, made here, and what is no encoder."""

import json
import shutil

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fastloss.ner import cli
from fastloss.ner.data import Corpus, DataError, Sentence, Span
from fastloss.ner.encode import EncodedSentences
from fastloss.ner.inference import load
from fastloss.ner.readers import read_corpus
from fastloss.ner.train import Settings, build

TEXT = "Mary Poppins flew to London . Acme Corp hired John in Paris . 小李在青城路等小王。"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# The encoder's configuration, whether its tokenizer works on bytes, and options of its own.
KINDS = {
    "bert": (transformers.BertConfig, False, SIZES),
    "distilbert": (transformers.DistilBertConfig, False, {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    "electra": (transformers.ElectraConfig, False, SIZES | {"embedding_size": 16}),
    "albert": (transformers.AlbertConfig, False, SIZES | {"embedding_size": 16}),
    "ernie": (transformers.ErnieConfig, False, SIZES),
    "roberta": (transformers.RobertaConfig, True, SIZES | {"pad_token_id": 1}),
    "xlm-roberta": (transformers.XLMRobertaConfig, True, SIZES | {"pad_token_id": 1}),
    "modernbert": (transformers.ModernBertConfig, True, SIZES | {"pad_token_id": 1, "cls_token_id": 0}),
}


def tokenizer_on_bytes():
    """As RoBERTa's and ModernBERT's: <s> is 0, <pad> is 1, </s> is 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tokenizer_on_characters():
    """As BERT's: a character of Chinese is a word, and the pieces of a Latin word begin with ##."""
    letters = sorted(set(TEXT) - {" "})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters if c.isascii())]
    return transformers.BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, do_lower_case=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """What a hub's encoders look like on disk: weights, a configuration, the tokenizer's files and no heads."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind, (config, on_bytes, options) in KINDS.items():
        tokenizer = tokenizer_on_bytes() if on_bytes else tokenizer_on_characters()
        torch.manual_seed(1)
        made = config(vocab_size=len(tokenizer), max_position_embeddings=66, **options)
        transformers.AutoModel.from_config(made).save_pretrained(root / kind)
        tokenizer.save_pretrained(root / kind)
    return root


ENGLISH = Sentence("Mary Poppins flew to London.", (Span("PER", 0, 11), Span("LOC", 21, 26)))
CHINESE = Sentence("小李在青城路等小王。", (Span("name", 0, 1), Span("address", 3, 5), Span("name", 7, 8)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sentence", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_kind_of_encoder_keeps_its_weights_and_finds_the_spans(kind, sentence, checkpoints):
    corpus = Corpus([sentence], [sentence])
    model, tokenizer = build(Settings(encoder=str(checkpoints / kind), max_length=64), corpus)
    data = EncodedSentences([sentence], tokenizer, 64, model.config.types)
    assert data.round_trip() == [set(sentence.spans)]
    assert data.unknown_share() == 0
    ids = torch.tensor([data[0]["input_ids"]])
    encoder = transformers.AutoModel.from_pretrained(checkpoints / kind, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state
        torch.testing.assert_close(model.eval().encoder(ids).last_hidden_state, expected)
        assert model(ids, torch.ones_like(ids))["logits"].shape == (1, ids.shape[1], 2, 1 + len(model.config.types))


def test_english_conll_and_roberta_go_through_every_command(checkpoints, english_directory, tmp_path, capsys):
    data = ["--data", english_directory, "--encoder", checkpoints / "roberta", "--max-length", 32]
    training = ["--epochs", 2, "--batch-size", 8, "--learning-rate", "3e-3"]

    def run(*arguments):
        cli.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    assert "PER" in run("data", *data).splitlines()[3]
    out = run("compare", *data, *training, "--losses", "ce", "focal", "--seeds", 1, "--out", tmp_path / "report")
    assert out.splitlines()[0].split() == ["loss", "LOC", "ORG", "PER", "F1"]
    trained = run("train", *data, *training, "--epochs", 6, "--out", tmp_path / "model").splitlines()
    evaluated = run("evaluate", tmp_path / "model", "--data", english_directory).splitlines()
    assert trained[1:] == evaluated
    assert [line.split()[0] for line in evaluated] == ["LOC", "ORG", "PER", "micro"]
    assert float(evaluated[-1].split()[6]) > 0.5
    (tmp_path / "lines.txt").write_text("Mary Poppins flew to London .\n", encoding="utf-8")
    (line,) = run("predict", tmp_path / "model", tmp_path / "lines.txt").splitlines()
    found = json.loads(line)
    assert found["text"] == "Mary Poppins flew to London ." and set(found["label"]) <= {"LOC", "ORG", "PER"}


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A BERT checkpoint to spoil."""
    return shutil.copytree(checkpoints / "bert", tmp_path / "copy")


def refusal(directory, **settings) -> str:
    with pytest.raises(DataError) as error:
        build(Settings(encoder=str(directory), **({"max_length": 32} | settings)), Corpus([CHINESE], [CHINESE]))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_directory_without_a_tokenizer_is_refused(copy):
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (copy / file).unlink(missing_ok=True)
    assert "holds no tokenizer; it should have one of tokenizer.json" in refusal(copy)


def test_a_vocabulary_longer_than_the_embedding_is_refused(copy):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    known = len(tokenizer)
    tokenizer.add_tokens(["龙"])
    tokenizer.save_pretrained(copy)
    assert f"has {known + 1} tokens, but its model has embeddings for {known}" in refusal(copy)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_weights_are_refused(copy, share):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    assert "cannot be loaded" in refusal(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("raw", [b"\xff\xfe", b"{", b"[]", b"{}"])
def test_files_that_are_something_else_are_refused(copy, file, raw):
    (copy / file).write_bytes(raw)
    assert "cannot be loaded" in refusal(copy)


def test_weights_of_another_model_are_refused(copy, checkpoints):
    shutil.copy(checkpoints / "electra" / "model.safetensors", copy)
    message = refusal(copy)
    assert "lack" in message or "cannot be loaded" in message


def test_a_longer_input_than_the_encoder_takes_is_an_error(checkpoints):
    assert "--max-length is 128" in refusal(checkpoints / "bert", max_length=128)
    assert "has positions for at most 66 tokens" in refusal(checkpoints / "roberta", max_length=65)


def test_texts_in_another_script_than_the_tokenizers_are_refused(checkpoints, tmp_path, capsys):
    lines = json.dumps({"text": "привет мир", "spans": [[0, 6, "X"]]}) + "\n"
    for part in ("train", "dev"):
        (tmp_path / f"{part}.jsonl").write_text(lines * 2, encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["train", "--data", str(tmp_path), "--encoder", str(checkpoints / "bert"), "--max-length", "32"])
    assert "does not know 100% of the tokens" in capsys.readouterr().err


def test_loading_what_training_did_not_save_is_an_error(checkpoints, tmp_path):
    with pytest.raises(DataError, match=r"holds no config\.json"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"cannot be loaded|lack"):
        load(checkpoints / "bert")


def test_english_and_chinese_are_told_apart(english_directory, small_corpus):
    from fastloss.ner.data import written_in_characters

    assert not written_in_characters(read_corpus(english_directory).train)
    assert written_in_characters(small_corpus.train)
