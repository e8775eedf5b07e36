"""A whole small comparison: what it measures, what it writes, and what a second run reuses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastloss.ner import compare as compare_module
from fastloss.ner.compare import compare, fingerprint, summarize
from fastloss.ner.report import ARTICLE, terminal_table, verdicts, write_report
from fastloss.ner.synthetic import generate
from fastloss.ner.train import LOSSES, Settings, gradient_profile, train

SETTINGS = Settings(layers=1, hidden=32, epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def finished(small_corpus, tmp_path_factory):
    """Two losses, two seeds, and the directory they were written to."""
    out = tmp_path_factory.mktemp("report")
    return compare(small_corpus, ["ce", "ghmc"], [1, 2], SETTINGS, out, resume=False), out


@pytest.fixture
def trained(monkeypatch):
    """Records which runs are trained instead of training them."""
    runs = []

    def fake(corpus, loss, seed, settings):
        runs.append((loss, seed))
        return None, None, {"loss": loss, "seed": seed}

    monkeypatch.setattr(compare_module, "train", fake)
    monkeypatch.setattr(compare_module, "time_loss", lambda *_: {})
    return runs


def test_every_run_is_measured(finished):
    results, out = finished
    assert [(r["loss"], r["seed"]) for r in results] == [("ce", 1), ("ghmc", 1), ("ce", 2), ("ghmc", 2)]
    for result in results:
        assert [entry["epoch"] for entry in result["epochs"]] == [1, 2]
        assert result["steps"] == 6
        assert result["epochs"][-1]["f1"] == pytest.approx(result["metrics"]["micro"]["f1"])
        assert len(result["sentence_counts"]) == 16
        assert result["loss_time"]["fused"] > 0 and result["loss_time"]["reference"] > 0
        path = out / "runs" / f"{result['loss']}-seed{result['seed']}.json"
        assert json.loads(path.read_text("utf-8")) == result


def test_the_dev_loss_starts_near_that_of_guessing_and_falls(finished):
    results, _ = finished
    for result in results:
        if result["loss"] == "ce":
            losses = [entry["dev_loss"] for entry in result["epochs"]]
            assert losses[1] < losses[0] < math.log(11)


def test_training_is_deterministic(finished, small_corpus):
    results, _ = finished
    _, _, again = train(small_corpus, "ce", 1, SETTINGS)
    assert again["epochs"] == results[0]["epochs"]
    assert again["metrics"] == results[0]["metrics"]


def test_accumulating_batches_is_training_on_the_larger_batch(small_corpus):
    whole = replace(SETTINGS, epochs=1, batch_size=48)
    model_a, _, _ = train(small_corpus, "ce", 1, replace(whole, warmup=0.0))
    model_b, _, _ = train(small_corpus, "ce", 1, replace(whole, warmup=0.0, batch_size=16, accumulation=3))
    # One step of AdamW moves every weight by about the learning rate in its gradient's direction; dropout differs.
    moves_a, moves_b = model_a.start.bias.detach(), model_b.start.bias.detach()
    torch.testing.assert_close(moves_a, moves_b, atol=1e-4, rtol=0)


def test_resume_trains_only_what_is_missing(finished, small_corpus, trained):
    results, out = finished
    again = compare(small_corpus, ["ce", "focal"], [1, 2], SETTINGS, out, resume=True)
    assert trained == [("focal", 1), ("focal", 2)]
    assert again[0] == results[0] and again[2] == results[2]
    for seed in (1, 2):
        (out / "runs" / f"focal-seed{seed}.json").unlink()


def test_without_resume_everything_is_trained_again(small_corpus, trained, tmp_path):
    for _ in range(2):
        compare(small_corpus, ["ce"], [1], SETTINGS, tmp_path, resume=False)
    assert trained == [("ce", 1)] * 2


@pytest.mark.parametrize("change", ["settings", "data", "options"])
def test_resume_does_not_mix_results_of_other_settings(change, small_corpus, trained, tmp_path, monkeypatch):
    compare(small_corpus, ["focal"], [1], SETTINGS, tmp_path, resume=True)
    settings, corpus = SETTINGS, small_corpus
    if change == "settings":
        settings = replace(SETTINGS, learning_rate=1e-4)
    elif change == "data":
        corpus = small_corpus._replace(dev=small_corpus.dev[:-1])
    else:
        monkeypatch.setitem(LOSSES, "focal", replace(LOSSES["focal"], options={"gamma": 1.0}))
    compare(corpus, ["focal"], [1], settings, tmp_path, resume=True)
    assert trained == [("focal", 1)] * 2


def test_resume_trains_again_what_is_not_a_result(small_corpus, trained, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ce-seed1.json").write_text('{"key":', encoding="utf-8")
    compare(small_corpus, ["ce"], [1], SETTINGS, tmp_path, resume=True)
    assert trained == [("ce", 1)]


def test_an_interruption_keeps_the_finished_runs(small_corpus, monkeypatch, tmp_path):
    def interrupted(corpus, loss, seed, settings):
        if loss == "lsr":
            raise KeyboardInterrupt
        return None, None, {"loss": loss}

    monkeypatch.setattr(compare_module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(small_corpus, ["ce", "lsr"], [1], SETTINGS, tmp_path, resume=False)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["ce-seed1.json"]


def test_the_fingerprint_sees_text_labels_and_parts(small_corpus):
    swapped = small_corpus._replace(train=small_corpus.dev, dev=small_corpus.train)
    noisy = generate(train=48, dev=16, seed=1, label_noise=0.5)
    assert len({fingerprint(corpus) for corpus in (small_corpus, swapped, noisy)}) == 3


def test_the_summary_is_the_mean_and_deviation_over_seeds(finished):
    results, _ = finished
    summary = summarize(results)
    f1 = [r["metrics"]["micro"]["f1"] for r in results if r["loss"] == "ghmc"]
    assert summary["losses"]["ghmc"]["f1"] == {"mean": np.mean(f1), "std": np.std(f1, ddof=1)}
    assert [(pair["a"], pair["b"]) for pair in summary["pairs"]] == [("ce", "ghmc")]


def test_one_seed_has_no_deviation(finished):
    results, _ = finished
    assert summarize(results[:1])["losses"]["ce"]["f1"]["std"] is None


def test_the_report_holds_table_figures_and_numbers(finished, tmp_path):
    results, _ = finished
    summary = write_report(results, tmp_path, "builtin", "fastloss compare")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| loss | address | book | company | game | government | movie | name | organization " in text
    assert "| ghmc | 0.6371 | 0.8136 |" in text
    for name in ("curves", "gradient_norms", "effective_gradient", "loss_time"):
        assert f"({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert numbers["losses"] == summary["losses"] and numbers["pairs"] == summary["pairs"]


def test_the_terminal_table_has_the_articles_rows_below(finished):
    summary = summarize(finished[0])
    lines = terminal_table(summary, "builtin", "tiny").splitlines()
    assert lines[0].split()[0] == "loss" and lines[0].split()[-1] == "F1"
    assert [line.split()[0] for line in (lines[2], lines[3], lines[5], lines[6])] == ["ce", "ghmc", "ce", "ghmc"]
    assert lines[5].split()[1:] == [f"{value:.4f}" for value in ARTICLE["ce"]]
    assert "other data" in lines[-1]
    assert "other data" not in terminal_table(summary, "cluener", "bert-base-chinese")


def test_verdicts_name_the_better_loss_first():
    pair = {"a": "ce", "b": "focal", "difference": -0.02, "low": -0.03, "high": -0.01}
    pair |= {"seeds": 3, "adjusted_p": 0.01, "real": True}
    (sentence,) = verdicts({"pairs": [pair]})
    assert sentence == (
        "focal is 0.0200 above ce (95% interval +0.0100 to +0.0300, adjusted p = 0.010): a real difference."
    )
    assert verdicts({"pairs": [pair | {"seeds": 1}]})[0].endswith("but one training each.")
    assert verdicts({"pairs": [pair | {"real": False}]})[0].endswith("may be chance.")


def test_gradient_profiles_are_the_losses_slopes():
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(20_000, 11), torch.randint(0, 11, (20_000,))
    profiles = {loss: gradient_profile(loss, logits, target) for loss in LOSSES}
    norm = np.array(profiles["ce"]["norm"])
    assert sum(profiles["ce"]["counts"]) == 20_000
    np.testing.assert_allclose(profiles["ce"]["effective"], norm, rtol=1e-4)
    # Label smoothing 0.1 over 11 classes asks for p = 0.9 + 0.1 / 11, so that the gradient shifts by the rest.
    np.testing.assert_allclose(profiles["lsr"]["effective"], np.abs(norm - 0.1 * 10 / 11), atol=6e-3)
    slope = norm**2 * (1 - 2 * (1 - norm) * np.log(1 - norm) / norm)
    np.testing.assert_allclose(np.array(profiles["focal"]["effective"])[:-1], (slope * norm)[:-1], rtol=0.02, atol=2e-4)
    # GHM-C: within a bin the weight is constant, N / (n * R).
    weights = np.array(profiles["ghmc"]["effective"]) / norm
    counts = np.array(profiles["ghmc"]["counts"]).reshape(10, 5).sum(1)
    np.testing.assert_allclose(weights.reshape(10, 5), (20_000 / (10 * counts))[:, None].repeat(5, 1), rtol=1e-3)
