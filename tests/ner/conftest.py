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


@pytest.fixture
def cluener():
    directory = os.environ.get("FASTLOSS_CLUENER_DIR")
    if not directory:
        pytest.skip("FASTLOSS_CLUENER_DIR does not name a directory with CLUENER's files")
    return directory
