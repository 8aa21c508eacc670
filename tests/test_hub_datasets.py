"""Data sets of the hub: how often it is asked, and what happens when it asks to wait."""

import os
import subprocess
import sys

import pytest

from nanochat.data import hub_datasets
from nanochat.system import downloads
from tests.node_helpers import ROOT

# What mid-training reads, in a process of its own: the hub's library keeps the address.
SCRIPT = """
from nanochat.data.tasks import mixtures
from nanochat.system import config
from nanochat.system.console import show_log

def main():
    show_log()
    train, val = mixtures.build("full", stage="mid")
    print(len(train), len(val), train[5], train[700], val[3])

config.cli(main)
"""


@pytest.fixture
def server(monkeypatch):
    """The modules of the rehearsal's hub."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rehearsal_data
    import rehearsal_server

    return rehearsal_data, rehearsal_server


def start(url, folder):
    """A process that reads the data sets into a folder."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hf"),
        "NANOCHAT_BASE_DIR": str(folder / "base"),
        "NANOCHAT_MIRROR": f"{url}/mirror",
        "no_proxy": "*",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, **pipes)


def read(url, folder, processes=1):
    """What each of several processes at once prints and logs."""
    started = [start(url, folder) for _ in range(processes)]
    ended = [(*process.communicate(), process.returncode) for process in started]
    assert [status for *_, status in ended] == [0] * processes, ended
    return [out for out, *_ in ended], [log for _, log, _ in ended]


@pytest.mark.slow
def test_many_processes_ask_the_hub_as_often_as_one_and_later_ones_not_at_all(server, tmp_path):
    data, servers = server
    hub = servers.Hub(data.hub_files(), data.mirror_files())
    with servers.serve(hub) as url:
        alone, _ = read(url, tmp_path / "alone")
        requests = len(hub.requests)
        assert any("/api/" in line for line in hub.requests)
        together, _ = read(url, tmp_path / "together", processes=3)
        assert len(hub.requests) == 2 * requests
        later, logs = read(url, tmp_path / "together", processes=2)
        assert len(hub.requests) == 2 * requests
    assert {*alone, *together, *later} == {alone[0]}
    assert f"loading openai/gsm8k:main:train from {tmp_path}/together/hf/datasets/" in logs[0]
    assert all(line.startswith("loading ") for line in logs[0].splitlines()), logs[0]


@pytest.mark.slow
def test_a_hub_that_has_too_many_requests_is_asked_again_when_it_says(server, tmp_path):
    data, servers = server
    hub = servers.Hub(data.hub_files(), data.mirror_files(), busy=2)
    with servers.serve(hub) as url:
        _, logs = read(url, tmp_path)
    assert hub.busy < 0
    assert "Traceback" not in logs[0] and "in 1 s" in logs[0], logs[0]


class Refused(Exception):
    """As the hub's library raises it."""

    def __init__(self, status, headers):
        super().__init__(f"{status} Client Error\nfor url")
        self.response = type("Response", (), {"status_code": status, "headers": headers})


def refusing(monkeypatch, errors):
    """Make `datasets` raise each of the errors, then return a row; the waits as they happen."""
    import datasets

    waits = []

    def load(name, config, split):
        if errors:
            raise RuntimeError("wrapped") from errors.pop(0)
        return [{"text": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_datasets.time, "sleep", waits.append)
    return waits


def test_a_temporary_refusal_is_waited_for_as_long_as_stated(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    limit = {"RateLimit": '"api";r=0;t=9'}
    errors = [Refused(429, {"Retry-After": "7"}), Refused(429, limit), Refused(503, {})]
    waits = refusing(monkeypatch, errors)
    assert hub_datasets.load("a/b", config=None, split="train") == [{"text": "a"}]
    assert waits == [7, 9, 4]


def test_a_lasting_refusal_is_one_line_and_another_error_is_not_repeated(monkeypatch, tmp_path):
    from nanochat.data.tasks.common import load_rows
    from nanochat.system.errors import DataError

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    waits = refusing(monkeypatch, [Refused(429, {})] * downloads.ATTEMPTS)
    with pytest.raises(
        DataError, match=r"^a/b:train cannot be loaded.*; check the network"
    ) as seen:
        load_rows("a/b", split="train")
    assert waits == [1, 2, 4, 8, 16] and "\n" not in str(seen.value)
    waits = refusing(monkeypatch, [Refused(404, {})])
    with pytest.raises(DataError, match=r"^a/b:train cannot be loaded"):
        load_rows("a/b", split="train")
    assert waits == []
