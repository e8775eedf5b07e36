"""A whole small comparison: what it measures, what it writes, what a second run reuses, and what dev never decides."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastloss.ner import compare as compare_module
from fastloss.ner.compare import Runs, compare, count_runs, tune
from fastloss.ner.data import Corpus, DataError, Sentence
from fastloss.ner.diagnosis import batch_profile, sample_batches
from fastloss.ner.losses import make_criterion, parse_loss
from fastloss.ner.progress import Progress
from fastloss.ner.summary import curve_state
from fastloss.ner.train import Settings, UntilFlat, hold_out, train

SETTINGS = Settings(layers=1, hidden=32, epochs=2, batch_size=16)
CE, GHMC, FOCAL = parse_loss("ce"), parse_loss("ghmc"), parse_loss("focal")


def runs(out, resume=False):
    return Runs(out, resume, Progress(1))


def go(corpus, losses, seeds, out, settings=SETTINGS, resume=False):
    return compare(corpus, losses, seeds, settings, [settings.learning_rate], runs(out, resume))


@pytest.fixture(scope="module")
def finished(small_corpus, tmp_path_factory):
    """Two losses, two seeds, and the directory they were written to."""
    out = tmp_path_factory.mktemp("report")
    return go(small_corpus, [CE, GHMC], [1, 2], out), out


@pytest.fixture
def trained(monkeypatch):
    """Records which runs are trained, on what, instead of training them."""
    asked = []

    class FakeRun:
        train_set = None

    def fake(corpus, loss, seed, settings, *_):
        asked.append((loss.name, seed, settings.learning_rate, corpus))
        run = FakeRun()
        run.rate = settings.learning_rate
        return run

    # The F1 is best at 1e-3.
    monkeypatch.setattr(compare_module, "train", fake)
    monkeypatch.setattr(
        compare_module, "measure", lambda run: {"metrics": {"micro": {"f1": 1 - abs(math.log10(run.rate) + 3) / 10}}}
    )
    monkeypatch.setattr(compare_module, "time_loss", lambda *_: {})
    return asked


def test_every_run_is_measured_and_written(finished, small_corpus):
    results, out = finished
    assert [(r["loss"], r["seed"]) for r in results] == [("ce", 1), ("ghmc", 1), ("ce", 2), ("ghmc", 2)]
    for result in results:
        assert [entry["epoch"] for entry in result["epochs"]] == [1, 2]
        assert result["steps"] == 6 and result["seconds"] > 0
        assert result["epochs"][-1]["f1"] == pytest.approx(result["metrics"]["micro"]["f1"])
        assert len(result["sentence_counts"]) == 16
        assert result["loss_time"]["seconds"] > 0
        decisions = 2 * sum(len(sentence.text) for sentence in small_corpus.dev)
        assert sum(sum(counts) for counts in result["gradient_norms"].values()) == decisions
        path = out / "runs" / f"{result['loss']}-seed{result['seed']}.json"
        assert json.loads(path.read_text("utf-8"))["result"] == json.loads(json.dumps(result))


def test_the_dev_loss_starts_near_that_of_guessing_and_falls(finished):
    results, _ = finished
    for result in results:
        if result["loss"] == "ce":
            losses = [entry["dev_loss"] for entry in result["epochs"]]
            assert losses[1] < losses[0] < math.log(11)


def test_training_is_deterministic(finished, small_corpus):
    results, _ = finished
    again = train(small_corpus, CE, 1, SETTINGS, Progress(1).begin("again"))
    assert again.record["epochs"] == results[0]["epochs"]
    assert again.record["early"] == results[0]["early"]


def test_accumulating_batches_is_training_on_the_larger_batch(small_corpus):
    whole = replace(SETTINGS, epochs=1, batch_size=48, warmup=0.0)
    biases = [
        train(small_corpus, CE, 1, settings, Progress(1).begin("run")).model.start.bias.detach()
        for settings in (whole, replace(whole, batch_size=16, accumulation=3))
    ]
    # One step of AdamW moves every weight by about the learning rate in its gradient's direction; dropout differs.
    torch.testing.assert_close(*biases, atol=1e-4, rtol=0)


def test_resume_trains_only_what_is_missing(finished, small_corpus, trained):
    results, out = finished
    again = go(small_corpus, [CE, FOCAL], [1, 2], out, resume=True)
    assert [run[:2] for run in trained] == [("focal", 1), ("focal", 2)]
    assert again[0] == json.loads(json.dumps(results[0])) and again[2] == json.loads(json.dumps(results[2]))
    for seed in (1, 2):
        (out / "runs" / f"focal-seed{seed}.json").unlink()


def test_without_resume_everything_is_trained_again(small_corpus, trained, tmp_path):
    for _ in range(2):
        go(small_corpus, [CE], [1], tmp_path)
    assert len(trained) == 2


@pytest.mark.parametrize("change", ["settings", "data", "options", "processes"])
def test_resume_does_not_mix_results_of_other_settings(change, small_corpus, trained, tmp_path, monkeypatch):
    go(small_corpus, [FOCAL], [1], tmp_path, resume=True)
    settings, corpus, loss = SETTINGS, small_corpus, FOCAL
    if change == "settings":
        settings = replace(SETTINGS, learning_rate=1e-4)
    elif change == "data":
        corpus = small_corpus._replace(dev=small_corpus.dev[:-1])
    elif change == "options":
        loss = replace(FOCAL, options={"gamma": 1.0})
    else:
        monkeypatch.setenv("WORLD_SIZE", "2")
    go(corpus, [loss], [1], tmp_path, settings, resume=True)
    assert len(trained) == 2


def spoilt(good: dict) -> list[bytes]:
    """Run files as a disk, an editor or an older version may leave them."""
    changed = good | {"result": good["result"] | {"seed": 7}}
    return [
        b"",
        b'{"key":',
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b"[" * 100_000,
        json.dumps({name: value for name, value in good.items() if name != "key"}).encode(),
        json.dumps(good | {"result": {}}).encode(),
        json.dumps(good | {"result": 3}).encode(),
        json.dumps(changed).encode(),
    ]


def test_resume_trains_again_what_is_not_a_result(small_corpus, trained, tmp_path):
    go(small_corpus, [CE], [1], tmp_path)
    path = tmp_path / "runs" / "ce-seed1.json"
    for count, raw in enumerate(spoilt(json.loads(path.read_bytes())), start=2):
        path.write_bytes(raw)
        go(small_corpus, [CE], [1], tmp_path, resume=True)
        assert len(trained) == count, raw[:60]
    go(small_corpus, [CE], [1], tmp_path, resume=True)
    assert len(trained) == count


def test_an_interruption_keeps_the_finished_runs(small_corpus, trained, monkeypatch, tmp_path):
    real = compare_module.train

    def interrupted(corpus, loss, *others):
        if loss.name == "lsr":
            raise KeyboardInterrupt
        return real(corpus, loss, *others)

    monkeypatch.setattr(compare_module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(small_corpus, [CE, parse_loss("lsr")], [1], tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["ce-seed1.json"]


def test_learning_rates_are_chosen_on_held_out_train_and_never_on_dev(small_corpus, trained, tmp_path):
    rates = [1e-4, 1e-3, 1e-2]
    compare(small_corpus, [CE, FOCAL], [1, 2], SETTINGS, rates, runs(tmp_path))
    tuning, final = trained[:6], trained[6:]
    assert [run[:3] for run in tuning] == [(loss, 1, rate) for loss in ("ce", "focal") for rate in rates]
    for *_, corpus in tuning:
        assert sorted(map(str, corpus.train + corpus.dev)) == sorted(map(str, small_corpus.train))
    assert [run[:3] for run in final] == [(loss, seed, 1e-3) for seed in (1, 2) for loss in ("ce", "focal")]
    assert all(run[3] == small_corpus for run in final)
    assert len(trained) == count_runs([CE, FOCAL], [1, 2], rates)


def test_tuning_takes_the_best_rate_and_the_first_of_equals(small_corpus, trained, tmp_path):
    assert tune(hold_out(small_corpus.train), CE, 1, SETTINGS, [3e-2, 1e-3, 1e-5], runs(tmp_path)) == 1e-3
    assert tune(hold_out(small_corpus.train), CE, 1, SETTINGS, [1e-2, 1e-4], runs(tmp_path)) == 1e-2


def test_a_tenth_is_held_out_the_same_every_time(small_corpus):
    split = hold_out(small_corpus.train)
    assert split == hold_out(small_corpus.train)
    assert len(split.dev) == 5 and len(split.train) == 43
    assert set(map(str, split.dev)).isdisjoint(map(str, split.train))
    with pytest.raises(DataError, match="one training sentence"):
        hold_out(small_corpus.train[:1])


def test_stopping_early_looks_at_held_out_sentences_and_keeps_their_best_epoch(small_corpus, monkeypatch):
    asked, scripted = [], iter([0.1, 0.3, 0.2, 0.25, 0.3, 0.9])

    def score(sentences, predictions):
        asked.append(sentences)
        return next(scripted) if sentences == held else 0.0

    held = hold_out(small_corpus.train).dev
    monkeypatch.setattr("fastloss.ner.train.micro_f1", score)
    settings = replace(SETTINGS, until_flat=True, epochs=9, patience=3)
    weights = []
    original = UntilFlat.on_epoch_end

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        weights.append(self.model.start.bias.detach().clone())

    monkeypatch.setattr(UntilFlat, "on_epoch_end", spy)
    run = train(small_corpus, CE, 1, settings, Progress(1).begin("run"))
    # Epoch 2 is the best; three without a new best end it, however good a sixth would have been.
    assert [epoch["held_f1"] for epoch in run.record["epochs"]] == [0.1, 0.3, 0.2, 0.25, 0.3]
    assert run.record["best_epoch"] == 2
    assert torch.equal(run.model.start.bias, weights[1]) and not torch.equal(weights[1], weights[-1])
    # The rate is halved after each epoch without a gain.
    rates = [epoch["learning_rate"] for epoch in run.record["epochs"]]
    assert rates[2] == 2e-3 and rates[4] == 2e-3 / 4
    # Training never saw what was held out, nor dev.
    assert run.train_set.sentences == hold_out(small_corpus.train).train


def test_patience_begins_with_the_first_mention_that_is_found():
    until_flat = UntilFlat(None, None, replace(SETTINGS, until_flat=True))
    for score, stale in ((0.0, 0), (0.0, 0), (0.0, 0), (0.2, 0), (0.1, 1), (0.2, 2), (0.3, 0)):
        until_flat.scores.append(score)
        assert until_flat.stale == stale


def result_with(scores, until_flat=False, best=None, diverged=False):
    settings = {"until_flat": until_flat, "patience": 3}
    return {
        "settings": settings,
        "epochs": [{"f1": score} for score in scores],
        "best_epoch": best,
        "diverged": diverged,
    }


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (result_with([0.1, 0.4, 0.5, 0.55, 0.6, 0.62, 0.63, 0.66]), "rising"),
        (result_with([0.1, 0.4, 0.5, 0.55, 0.6, 0.62, 0.62, 0.624]), "flat"),
        (result_with([0.1, 0.4, 0.7, 0.55, 0.6, 0.62, 0.63, 0.66]), "flat"),
        (result_with([0.1, 0.1, 0.1]), "too short"),
        (result_with([0.1, 0.2, 0.2, 0.2, 0.2], until_flat=True, best=2), "flat"),
        (result_with([0.1, 0.2, 0.2, 0.2, 0.3], until_flat=True, best=5), "rising"),
        (result_with([0.0] * 8, diverged=True), "diverged"),
    ],
)
def test_curves_are_marked_flat_or_rising(result, state):
    assert curve_state(result) == state


def test_a_learning_rate_that_blows_up_is_a_result_of_zeros(small_corpus, tmp_path):
    settings = replace(SETTINGS, learning_rate=1e30, warmup=0.0)
    (result,) = go(small_corpus, [CE], [1], tmp_path, settings)
    assert result["diverged"] and result["metrics"]["micro"]["f1"] == 0.0
    assert go(small_corpus, [CE], [1], tmp_path, settings, resume=True) == [json.loads(json.dumps(result))]


def test_the_weights_of_a_batch_are_the_losses_slopes(small_corpus):
    run = train(small_corpus, CE, 1, replace(SETTINGS, epochs=1), Progress(1).begin("run"))
    run.model.dropout.p = 0.0
    batches = run.batches(16)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}

    def weights(spec):
        criterion = make_criterion(parse_loss(spec), run.train_set.tag_counts())
        return np.array(batch_profile(run.model, batches, criterion, bins=10)["weight"], dtype=float)

    ones = weights("ce")
    np.testing.assert_allclose(ones[~np.isnan(ones)], 1, rtol=1e-3)
    # Within a bin GHM-C's weight is N / (n · R): their mean over a batch's decisions is 1.
    ghmc = weights("ghmc")
    assert np.nanmax(ghmc) > 1 > np.nanmin(ghmc)
    centres = (np.arange(10) + 0.5) / 10
    slope = centres**2 * (1 - 2 * (1 - centres) * np.log(1 - centres) / centres)
    focal = weights("focal")
    np.testing.assert_allclose(focal, np.where(np.isnan(focal), np.nan, slope), atol=0.25)
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    assert len(run.model.criteria) == 2


def test_the_same_batches_are_sampled_every_time(small_corpus):
    run = train(small_corpus, CE, 1, replace(SETTINGS, epochs=1), Progress(1).begin("run"))
    first, second = (sample_batches(run.train_set, 16, list, batches=2) for _ in range(2))
    assert first == second and len(first) == 2 and len(first[0]) == 16


def test_data_without_any_mention_is_refused(tmp_path):
    with pytest.raises(DataError, match="no mention of any type"):
        go(Corpus([Sentence("abc")] * 3, [Sentence("abc")]), [CE], [1], tmp_path)
