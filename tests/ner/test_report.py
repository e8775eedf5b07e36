"""The report: verdicts with their budget, tables, figures and a page that needs no other file."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fastloss.ner import figures
from fastloss.ner.compare import Runs, compare
from fastloss.ner.data import Corpus, Sentence, Span
from fastloss.ner.losses import DEFAULT_LOSSES, KINDS, parse_loss
from fastloss.ner.progress import Progress, duration
from fastloss.ner.report import ARTICLE, mark_up, terminal_table, write_report
from fastloss.ner.study import Condition, study_corpora, write_study
from fastloss.ner.summary import headline, summarize, verdicts
from fastloss.ner.train import Settings

SETTINGS = Settings(layers=1, hidden=32, epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def results(small_corpus, tmp_path_factory):
    losses = [parse_loss(spec) for spec in DEFAULT_LOSSES]
    runs = Runs(tmp_path_factory.mktemp("runs"), False, Progress(10))
    return compare(small_corpus, losses, [1, 2], SETTINGS, [SETTINGS.learning_rate], runs)


@pytest.fixture(scope="module")
def summary(results, small_corpus):
    return summarize(results, small_corpus)


class Page(HTMLParser):
    """Collects what a page would load and whether its tags are closed."""

    VOID = frozenset({"meta", "br", "wbr"})

    def __init__(self, text):
        super().__init__()
        self.loads, self.open, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_follows_the_page_colours(results, summary, tmp_path):
    write_report(results, summary, tmp_path, "builtin", "fastloss compare <b>")
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == [] and page.tags.count("svg") == 11
    assert all(value.startswith(("#", "data:image/png")) for value in page.loads)
    assert "url(http" not in text and "@import" not in text
    assert figures.INK not in text and figures.GRID not in text and "currentColor" in text
    assert "prefers-color-scheme: dark" in text and "smoke test" in text
    assert "fastloss compare &lt;b&gt;" in text


def test_markdown_and_json_hold_the_same_numbers(results, summary, tmp_path):
    write_report(results, summary, tmp_path, "my data", "fastloss compare")
    text = (tmp_path / "report.md").read_text("utf-8")
    numbers = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert numbers["settings"]["epochs"] == 1 and numbers["command"] == "fastloss compare"
    assert numbers["losses"] == json.loads(json.dumps(summary["losses"]))
    assert f"{summary['losses']['focal']['f1']['mean']:.4f}" in text
    for name in re.findall(r"\]\((figures/\w+\.svg)\)", text):
        figure = (tmp_path / name).read_text("utf-8")
        assert figure.endswith("</svg>\n") and figures.INK not in figure
    assert "official" not in text and "article" not in text and "smoke test" not in text


def test_the_article_and_the_official_score_are_for_cluener_alone(summary):
    assert "official" not in terminal_table(summary) and "article" not in terminal_table(summary)
    lines = terminal_table(summary | {"cluener": True}).splitlines()
    assert lines[-1].startswith("The article's table") and lines[-1].endswith("another encoder than above.")
    assert [line.split()[0] for line in lines[-5:-1]] == list(ARTICLE)
    assert lines[-5].split()[1:] == [f"{value:.4f}" for value in ARTICLE["ce"]]


def test_the_summary_is_the_mean_and_deviation_over_seeds(results, summary):
    recall = [r["metrics"]["micro"]["recall"] for r in results if r["loss"] == "ghmc"]
    assert summary["losses"]["ghmc"]["recall"] == {"mean": np.mean(recall), "std": np.std(recall, ddof=1)}
    assert [(pair["a"], pair["b"]) for pair in summary["pairs"]][:2] == [("ce", "lsr"), ("ce", "focal")]
    assert list(summary["support"].values()) == sorted(summary["support"].values(), reverse=True)


def scripted(summary, **curves):
    """The summary with the F1 and the curve of these losses, and one difference."""
    losses = {
        name: summary["losses"]["ce"] | {"f1": {"mean": f1, "std": None, "low": f1, "high": f1}, "curve": curve}
        for name, (f1, curve) in curves.items()
    }
    settled = all(curve == "flat" for _, curve in curves.values())
    pair = {"a": "ce", "b": "focal", "difference": -0.02, "low": -0.03, "high": -0.01, "settled": settled}
    return summary | {"losses": losses, "seeds": [1, 2, 3], "pairs": [pair | {"adjusted_p": 0.01, "real": True}]}


def test_verdicts_name_the_better_loss_first_and_the_budget(summary):
    settled = scripted(summary, ce=(0.8, "flat"), focal=(0.82, "flat"))
    assert verdicts(settled) == [
        "focal is 2.0 points above ce (95% interval +1.0 to +3.0, adjusted p = 0.010; 1 epoch, 3 seeds): "
        "a real difference."
    ]
    assert headline(settled) == "Against ce (0.800), in points of F1: focal +2.0. 1 epoch, 3 seeds, settled."
    rising = scripted(summary, ce=(0.8, "flat"), focal=(0.82, "rising"))
    assert verdicts(rising)[0].endswith("at this budget; not settled, a curve still rises or is too short.")
    assert headline(rising).endswith("not settled: focal.")
    one = settled | {"seeds": [1]}
    assert verdicts(one)[0].endswith("but one training each.")
    chance = settled | {"pairs": [settled["pairs"][0] | {"real": False}]}
    assert verdicts(chance)[0].endswith("may be chance.") and "focal +2.0 (may be chance)" in headline(chance)


def test_an_f1_of_zero_for_all_is_a_failure_and_no_tie(summary):
    nothing = scripted(summary, ce=(0.0, "flat"), focal=(0.0, "flat"))
    assert headline(nothing).startswith("Failure, not a tie: no loss finds a single mention")
    assert verdicts(nothing) == []


def test_a_loss_keeps_its_colour_and_the_defaults_differ():
    assert len({figures.colour(loss) for loss in DEFAULT_LOSSES}) == len(DEFAULT_LOSSES)
    assert figures.colour("mine:Loss") == figures.colour("mine:Loss")
    assert not {kind.colour for kind in KINDS.values()}.intersection(figures.OTHERS)


def test_mentions_are_marked_where_they_are():
    pieces = mark_up("Mary in London", [Span("LOC", 8, 13), Span("PER", 0, 3), Span("LOC", 10, 12)])
    assert pieces == [("Mary", "PER"), (" in ", ""), ("London", "LOC")]
    assert "".join(text for text, _ in mark_up("abc", [])) == "abc"


def test_a_run_that_diverged_and_runs_of_different_lengths_are_drawn(results, small_corpus, tmp_path):
    broken = [dict(result) for result in results]
    broken[0] |= {"diverged": True, "epochs": [broken[0]["epochs"][0] | {"train_loss": None, "dev_loss": None}]}
    broken[0] |= {"late": broken[0]["late"] | {"weight": [[None] * 20] * 3}}
    broken[1] |= {"epochs": broken[1]["epochs"] * 3}
    summary = summarize(broken, small_corpus)
    assert summary["losses"]["ce"]["curve"] == "diverged"
    write_report(broken, summary, tmp_path, "builtin", "fastloss compare")
    assert (tmp_path / "report.html").is_file()


def test_any_types_and_a_single_loss_can_be_reported(tmp_path):
    sentence = Sentence("Mary in London now", (Span("PER <&>", 0, 3), Span("LOC", 8, 13)))
    corpus = Corpus([sentence] * 8, [sentence] * 2)
    (result,) = compare(corpus, [parse_loss("ce")], [1], SETTINGS, [1e-3], Runs(tmp_path, False, Progress(1)))
    summary = summarize([result], corpus)
    write_report([result], summary, tmp_path, "data", "fastloss compare")
    assert Page((tmp_path / "report.html").read_text("utf-8")).open == []
    assert headline(summary).startswith(("ce has F1", "Failure"))


def test_the_study_has_a_table_and_a_figure_for_each_sweep(results, tmp_path):
    spoilt = [result | {"sentence_counts": [[0, 1, 1]] * 16} for result in results]
    conditions = {Condition(0.0, 1.0): results, Condition(0.2, 1.0): spoilt, Condition(0.0, 0.25): results}
    text = write_study(conditions, tmp_path, "fastloss study")
    assert "| loss | 0% wrong | 20% wrong |" in text and "| loss | 1 kept | 0.25 kept |" in text
    assert re.search(r"\| ce \| 0\.\d+ \(.*\) \| 0\.000 \(0\.000 to 0\.000\) \|", text)
    assert {path.name for path in tmp_path.iterdir()} == {"study.md", "study.json", "noise.svg", "rare.svg"}


def test_the_studys_corpora_share_their_dev_and_what_both_sweeps_begin_from():
    corpora = study_corpora([0.0, 0.2], [1.0, 0.25])
    assert [condition.label for condition in corpora] == ["noise-0-thin-1", "noise-0.2-thin-1", "noise-0-thin-0.25"]
    plain, noisy, thinned = corpora.values()
    assert plain.dev == noisy.dev == thinned.dev
    assert len(thinned.train) < len(plain.train) == len(noisy.train) and plain.train != noisy.train


def test_times_are_told_in_the_unit_that_fits():
    assert [duration(seconds) for seconds in (9.4, 90, 5400)] == ["9 s", "2 min", "1.5 h"]


def test_the_time_left_goes_by_the_runs_that_were_trained(monkeypatch, capsys, tmp_path):
    clock = iter([0.0, 30.0, 30.0, 75.0])
    monkeypatch.setattr("fastloss.ner.progress.time.monotonic", lambda: next(clock))
    progress = Progress(4)
    progress.skip("kept", tmp_path)
    progress.trained += 1
    assert progress.label("ce") == "run 2 of 4  ce"
    # Half a run in 30 s: half of this one and two more are 150 s.
    assert progress.left(0.5) == "2 min left"
    assert "run 1 of 4  kept  kept from" in capsys.readouterr().err


def test_an_upper_bound_is_called_one():
    progress = Progress(1, upper_bound=True)
    progress.begin("ce")
    assert progress.left(1.0).startswith("at most ")
