"""What all tests need."""

import json
import signal

import pytest

from nanochat import tokenizer


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """Started in the background, the tests and their children would be deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base folder with some text and a character tokenizer for the run "tiny"."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    texts = [f"The cat number {i} sat on the mat and saw {i * 7} mice.\n" * 8 for i in range(60)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(rows)
    encoder = tokenizer.train_char(texts)
    tokenizer.save(encoder, tmp_path / "base" / "tokenizers" / "tiny" / "tokenizer.json")
    return tmp_path
