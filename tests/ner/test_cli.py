"""The command as a user types it: every subcommand, and one sentence with exit code 2 for what is wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastloss
from fastloss.ner import cli
from fastloss.ner.readers import read_corpus
from fastloss.ner.synthetic import generate

FAST = ("--layers", "1", "--hidden", "32", "--epochs", "1", "--batch-size", "16")
FOUR = ("ce", "lsr", "focal", "ghmc")


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """Runs a command that should be refused and returns its one sentence."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.splitlines()[-1]


@pytest.fixture(scope="module")
def model(small_directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    run("train", "--loss", "focal", "--data", small_directory, "--out", out, *FAST)
    return out


def test_compare_prints_the_table_and_writes_the_report(small_directory, tmp_path, capsys):
    arguments = ("--data", small_directory, "--losses", *FOUR, "--seeds", 42, "--out", tmp_path / "a report", *FAST)
    run("compare", *arguments)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == list(FOUR)
    assert "48 train and 16 dev sentences, 10 types; 4 losses × 1 seeds, 1 epochs of about 3 steps." in err
    assert sum("epoch 1/1" in line for line in err.splitlines()) == 4 and "run 4 of 4" in err
    assert lines[-1] == f"Report: {tmp_path / 'a report' / 'report.html'}"
    assert (tmp_path / "a report" / "report.html").is_file() and (tmp_path / "a report" / "report.md").is_file()
    run("compare", *arguments, "--resume")
    again, err = capsys.readouterr()
    assert again == out
    assert "epoch 1/1" not in err and err.count("kept from") == 4


def test_learning_rates_are_tuned_and_tensorboard_is_written(small_directory, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    rates = ("--learning-rate", "1e-3", "2e-3", "--tensorboard")
    run("compare", "--data", small_directory, "--losses", "ce", "--seeds", 1, "--out", tmp_path, *FAST, *rates)
    assert "after 2 learning rates each" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "ce-seed1.json",
        "tune-ce-lr0.001-seed1.json",
        "tune-ce-lr0.002-seed1.json",
    }
    assert list((tmp_path / "tensorboard" / "ce-seed1").rglob("events*"))


def test_the_study_compares_over_noise_and_imbalance(small_corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastloss.ner.study.generate", lambda label_noise: small_corpus)
    sweeps = ("--noise", 0, "--thin", 1, "1/4", "--losses", "ce", "--seeds", 1)
    run("study", *sweeps, "--out", tmp_path, *FAST)
    out, err = capsys.readouterr()
    assert "| loss | 0% wrong |" in out and "| loss | 1 kept | 0.25 kept |" in out
    assert "run 2 of 2" in err and (tmp_path / "study.md").is_file()


def test_train_saves_a_model_that_evaluate_scores_the_same(small_directory, tmp_path, capsys):
    run("train", "--data", small_directory, "--out", tmp_path, *FAST, "--epochs", 3)
    trained = capsys.readouterr().out.splitlines()
    assert trained[0] == f"Model: {tmp_path}"
    run("evaluate", tmp_path, "--data", small_directory)
    assert capsys.readouterr().out.splitlines() == trained[1:]
    assert len(trained) == 12 and "official" not in trained[-1]


def test_predict_answers_every_line_in_cluener_format(model, tmp_path, capsys, monkeypatch):
    texts = ["王小明在北京。", "有\u2028分隔", "x" * 300]
    expected = [json.dumps(text, ensure_ascii=False) for text in texts]
    raw = ("\ufeff" + "\n\n".join(texts) + "\n").encode()
    (tmp_path / "lines.txt").write_bytes(raw)
    run("predict", model, tmp_path / "lines.txt")
    from_file = capsys.readouterr().out
    assert [json.dumps(json.loads(x)["text"], ensure_ascii=False) for x in from_file.split("\n")[:-1]] == expected
    (tmp_path / "train.json").write_text(from_file, encoding="utf-8")
    (tmp_path / "dev.json").write_text(from_file, encoding="utf-8")
    assert len(read_corpus(tmp_path).dev) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    run("predict", model)
    assert capsys.readouterr().out == from_file
    run("predict", model, tmp_path / "dev.json")
    assert capsys.readouterr().out == from_file


def test_data_prints_counts_and_writes_what_it_reads(tmp_path, capsys):
    run("data", "--write", tmp_path)
    builtin = capsys.readouterr().out
    assert read_corpus(tmp_path) == generate()
    run("data", "--data", tmp_path)
    assert capsys.readouterr().out == builtin


def test_data_prints_the_published_counts_of_cluener(cluener, capsys):
    run("data", "--data", cluener)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["address", "2829", "2891", "364", "373"]
    assert lines[11].split() == ["all", "23338", "23971", "2982", "3072"]


def test_info_prints_every_entry(capsys):
    run("info")
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(fastloss.build_info())
    assert fastloss.__version__ in out


def test_python_m_fastloss_is_the_command():
    done = run_as_a_process("-m", "fastloss", "info")
    assert done.returncode == 0 and fastloss.__version__ in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere"], "nowhere is not a directory"),
        (["compare", "--encoder", "no/such/model"], '"no/such/model" cannot be loaded'),
        (["compare", "--bf16", "--fp16"], "--bf16 and --fp16 are both given"),
        (["compare", "--fp16"], "--fp16 is given, but float16 training needs a CUDA device"),
        (["compare", "--seeds", "42", "-1"], "-1 should be at least 0"),
        (["train", "--out", __file__], "test_cli.py cannot be used: File exists"),
        (["compare", "--hidden", "100"], "--hidden is 100, but it should be a multiple of 32"),
        (["compare", "--max-length", "3"], "--max-length is 3, but it should be at least 8"),
        (["compare", "--epochs", "0"], "argument --epochs: 0 should be greater than 0"),
        (["compare", "--epochs", "x"], "argument --epochs: invalid"),
        (["compare", "--learning-rate", "nan"], "argument --learning-rate: nan should be greater than 0"),
        (["compare", "--losses", "hinge"], 'argument --losses: "hinge" is no loss'),
        (["compare", "--losses", "focal:gamma=-1"], 'the loss "focal:gamma=-1" cannot be used: gamma is -1'),
        (["train", "--learning-rate", "1e-3", "2e-3"], "unrecognized arguments: 2e-3"),
        (["data", "--thin", "0"], "0 should be above 0 and at most 1"),
        (["data", "--thin", "1/0"], "1/0 should be above 0 and at most 1"),
        (["data", "--label-noise", "1.5"], "1.5 should be at least 0 and below 1"),
        (["evaluate", "nowhere"], "nowhere holds no config.json"),
        (["predict", "nowhere"], "nowhere holds no config.json"),
        ([], "the following arguments are required: command"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in refused(capsys, *arguments)


def test_a_wrong_input_file_is_one_sentence(model, small_directory, tmp_path, capsys):
    assert "cannot be read: No such file" in refused(capsys, "predict", model, tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "is not UTF-8 text" in refused(capsys, "predict", model, tmp_path / "latin.txt")
    (tmp_path / "train.json").write_text('{"text": "a", "label": {"name": {"b": [[0, 0]]}}}', "utf-8")
    (tmp_path / "empty.json").write_text('{"text": ""}', "utf-8")
    assert "the text of every one is empty" in refused(capsys, "predict", model, tmp_path / "empty.json")
    (tmp_path / "half.json").write_text('{"text": "\\ud800"}', "utf-8")
    assert "is half of a surrogate pair" in refused(capsys, "predict", model, tmp_path / "half.json")
    assert "train.json, line 1: the span [0, 0]" in refused(capsys, "data", "--data", tmp_path)
    assert "for the builtin data only" in refused(capsys, "data", "--data", small_directory, "--label-noise", "0.1")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setattr(cli, "EXTRA", ("numpy", "a_module_nobody_has"))
    assert refused(capsys, "compare") == (
        "fastloss: this command needs a_module_nobody_has: pip install 'fastloss[ner]'"
    )


def test_an_interruption_says_how_to_go_on(small_directory, monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastloss.ner.compare.train", interrupted)
    with pytest.raises(SystemExit) as error:
        run("compare", "--data", small_directory, "--out", tmp_path)
    assert error.value.code == 130
    assert "--resume" in capsys.readouterr().err


def test_a_learning_rate_that_blows_up_ends_in_a_report_and_a_model(small_directory, tmp_path, capsys):
    huge = ("--learning-rate", "1e30", "--warmup", "0", "--data", small_directory, *FAST)
    run("compare", "--losses", "ce", "focal", "--seeds", 1, "--out", tmp_path / "report", *huge)
    assert "Failure, not a tie" in capsys.readouterr().out
    run("train", "--out", tmp_path / "model", *huge)
    assert "Model:" in capsys.readouterr().out
    run("evaluate", tmp_path / "model", "--data", small_directory)
    assert capsys.readouterr().out.splitlines()[-1].split()[-3] == "0.0000"


def test_a_truncated_model_is_one_sentence(model, tmp_path, capsys):
    for file, raw in (("model.safetensors", None), ("config.json", b"\xff"), ("tokenizer.json", b'{"a": "\xff"}')):
        copy = shutil.copytree(model, tmp_path / file)
        whole = (copy / file).read_bytes()
        (copy / file).write_bytes(whole[: len(whole) // 2] if raw is None else raw)
        assert "cannot be loaded" in refused(capsys, "predict", copy, __file__)


def run_as_a_process(*arguments, stdout=subprocess.PIPE, **options):
    """Runs it to its end, or ends it with all that it started: torchrun's ranks would hold the pipes open for ever."""
    command = [sys.executable, *map(str, arguments)]
    options |= {"stderr": subprocess.PIPE, "text": True, "cwd": Path(fastloss.__file__).parents[1]}
    with subprocess.Popen(command, stdout=stdout, start_new_session=True, **options) as process:
        try:
            out, err = process.communicate(timeout=200)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = run_as_a_process("-m", "fastloss", "info", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "fastloss: the output cannot be used: No space left on device.\n"


def test_torchrun_shares_the_sentences_among_its_ranks_without_a_warning(small_directory, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastloss", "compare"]
    arguments = ["--data", small_directory, "--losses", "ce", "ghmc", "--seeds", 42, "--out", tmp_path, *FAST]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = run_as_a_process(*command, *arguments, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 2 and "arning" not in done.stderr, done.stderr
    assert done.stdout.count("Report:") == 1
    # 48 sentences, two ranks with batches of 16.
    for loss in ("ce", "ghmc"):
        run_file = json.loads((tmp_path / "runs" / f"{loss}-seed42.json").read_text("utf-8"))
        assert run_file["result"]["steps"] == 2 and run_file["key"]["processes"] == 2
