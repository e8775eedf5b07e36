"""What the NER tests share: a small corpus on disk and the directory of the real one."""

import json
import os

import pytest

from fastloss.ner.data import to_record
from fastloss.ner.synthetic import generate


@pytest.fixture(scope="session")
def small_corpus():
    return generate(train=48, dev=16, seed=1)


@pytest.fixture(scope="session")
def small_directory(small_corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("small")
    for part, sentences in small_corpus._asdict().items():
        lines = [json.dumps(to_record(sentence), ensure_ascii=False) for sentence in sentences]
        (directory / f"{part}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


ENGLISH = """\
-DOCSTART- -X- O O

Mary NNP B-NP B-PER
Poppins NNP I-NP I-PER
flew VBD B-VP O
to IN B-PP O
London NNP B-NP B-LOC
. . O O

Acme NNP B-NP B-ORG
Corp NNP I-NP I-ORG
hired VBD B-VP O
John NNP B-NP B-PER
in IN B-PP O
Paris NNP B-NP B-LOC
"""


@pytest.fixture(scope="session")
def english_directory(tmp_path_factory):
    """CoNLL columns with PER, ORG and LOC."""
    directory = tmp_path_factory.mktemp("english")
    (directory / "train.conll").write_text("\n".join([ENGLISH] * 24), encoding="utf-8")
    (directory / "valid.conll").write_text("\n".join([ENGLISH] * 2), encoding="utf-8")
    return directory


@pytest.fixture
def cluener():
    directory = os.environ.get("FASTLOSS_CLUENER_DIR")
    if not directory:
        pytest.skip("FASTLOSS_CLUENER_DIR does not name a directory with CLUENER's files")
    return directory
