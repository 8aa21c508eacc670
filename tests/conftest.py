"""What all tests need."""

import json
import os
import signal

import pytest
import torch

from nanochat import tokenizer
from nanochat.system import compiler


def pytest_configure() -> None:
    """Give each of pytest-xdist's workers a core: stages take as many threads as they see cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    if worker:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """Started in the background, the tests and their children would be deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def torch_compile(monkeypatch):
    """Skips where torch.compile does not work; elsewhere what fails to compile fails the test."""
    failure = compiler.probe(torch.device("cpu"))
    if failure is not None:
        pytest.skip(failure.reason)

    def fail(*args: object) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(compiler.log, "error", fail)


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
