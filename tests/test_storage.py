"""Writes succeed completely or not at all; locks hold between processes."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.system import storage
from nanochat.system.errors import ConfigError, DataError


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.json"
    storage.write_json(path, {"x": 1})
    storage.write_json(path, {"x": "é"})
    assert storage.read_json(path, "thing") == {"x": "é"}
    assert os.listdir(path.parent) == ["b.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b"
    storage.write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b"]


def test_an_atomic_folder_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "step"
    with pytest.raises(RuntimeError), storage.atomic_folder(target) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with storage.atomic_folder(target) as folder:
        (folder / "complete").write_text("x")
        assert not target.exists()
    assert os.listdir(tmp_path) == ["step"]
    assert os.listdir(target) == ["complete"]


def test_json_that_is_missing_or_damaged_names_the_file(tmp_path):
    with pytest.raises(DataError, match="no such manifest"):
        storage.read_json(tmp_path / "m.json", "manifest")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(DataError, match=r"m\.json is not a readable manifest"):
        storage.read_json(tmp_path / "m.json", "manifest")


def hold(path: Path, log: Path) -> None:
    with storage.lock(path):
        log.write_text(log.read_text() + "in ")
        time.sleep(0.2)
        log.write_text(log.read_text() + "out ")


def test_a_lock_lets_one_process_in_at_a_time(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=hold, args=(tmp_path / "lock", log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "in out " * 3


def test_a_lock_ends_with_the_process_that_holds_it_and_its_file_stays(tmp_path):
    path = tmp_path / "lock"
    program = f"""
import pathlib, time
from nanochat.system import storage
with storage.lock(pathlib.Path({str(path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use"), storage.lock(path, busy="in use"):
            pass
        process.kill()
    with storage.lock(path, busy="in use"):
        pass
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has another call")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_an_error_with_a_remedy(tmp_path, monkeypatch, number):
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(ConfigError, match=r"cannot be locked \(.*set NANOCHAT_BASE_DIR"),
        storage.lock(tmp_path / "lock"),
    ):
        pass
