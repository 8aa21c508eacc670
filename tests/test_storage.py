"""Writes succeed completely or not at all; locks hold between processes."""

import errno
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.system import storage
from nanochat.system.errors import ConfigError, DataError, explain


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


@pytest.fixture
def events(tmp_path, monkeypatch):
    """What is synced and renamed below tmp_path, in order; temporary names are shown as "new"."""
    found: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def shown(path: Path) -> str:
        return "new" if re.fullmatch(storage.TEMPORARY, path.name) else path.name

    def sync(handle: int) -> None:
        number = os.fstat(handle).st_ino
        (path,) = [p for p in (tmp_path, *tmp_path.rglob("*")) if p.stat().st_ino == number]
        found.append(f"sync {shown(path)}")
        real_sync(handle)

    def rename(path: Path, target: Path) -> Path:
        found.append(f"rename {shown(path)} to {target.name}")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(Path, "replace", rename)
    return found


def test_a_file_is_on_disk_before_it_has_its_name_and_its_name_before_we_go_on(tmp_path, events):
    storage.write_atomic(tmp_path / "f", b"x")
    assert events == ["sync new", "rename new to f", f"sync {tmp_path.name}"]


def test_a_folder_is_on_disk_before_it_has_its_name_and_its_name_before_we_go_on(tmp_path, events):
    with storage.atomic_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("x")
        (folder / "b").write_text("x")
        (folder / "inner").mkdir()
        (folder / "inner" / "c").write_text("x")
    assert sorted(events[:4]) == ["sync a", "sync b", "sync c", "sync inner"]
    assert events[4:] == ["sync new", "rename new to step", f"sync {tmp_path.name}"]


def refusing(number: int, *, folders_only: bool = False):
    """An os.fsync that fails."""
    real = os.fsync

    def sync(handle: int) -> None:
        if folders_only and not stat.S_ISDIR(os.fstat(handle).st_mode):
            return real(handle)
        raise OSError(number, os.strerror(number))

    return sync


def write_both(folder: Path) -> None:
    storage.write_atomic(folder / "file", b"x")
    with storage.atomic_folder(folder / "folder") as temporary:
        (temporary / "inside").write_text("x")


@pytest.mark.parametrize("folders_only", [True, False])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_sync_costs_one_warning(
    tmp_path, monkeypatch, caplog, number, folders_only
):
    storage._warn_once.cache_clear()
    monkeypatch.setattr(os, "fsync", refusing(number, folders_only=folders_only))
    write_both(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == [
        "warning: the file system cannot sync folders or files"
    ]


@pytest.mark.parametrize("folders_only", [True, False])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_to_sync_is_an_error(tmp_path, monkeypatch, number, folders_only):
    monkeypatch.setattr(os, "fsync", refusing(number, folders_only=folders_only))
    with pytest.raises(OSError) as error:
        storage.write_atomic(tmp_path / "file", b"x")
    assert error.value.errno == number
    with pytest.raises(OSError) as error, storage.atomic_folder(tmp_path / "folder"):
        pass
    assert error.value.errno == number
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_opened_for_reading_can_be_written(tmp_path, monkeypatch, number):
    real = os.open

    def no_folders(path, flags, *args, **kwargs):
        if Path(path).is_dir():
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", no_folders)
    write_both(tmp_path)
    assert (tmp_path / "folder" / "inside").read_text() == "x"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_the_users_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_both(tmp_path)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes == {
        "file": 0o666 & ~umask,
        "folder": 0o777 & ~umask,
        "inside": 0o666 & ~umask,
    }


def test_nothing_needs_chmod(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    write_both(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "broken link"])
def test_what_stands_in_the_place_of_a_folder_makes_way_and_a_links_target_stays(tmp_path, kind):
    target, place = tmp_path / "target", tmp_path / "step"
    target.mkdir()
    (target / "precious").write_text("x")
    if kind == "file":
        place.write_text("x")
    elif kind == "folder":
        place.mkdir()
        (place / "old").write_text("x")
    else:
        place.symlink_to(target if kind == "link" else tmp_path / "nothing")
    with storage.atomic_folder(place) as folder:
        (folder / "new").write_text("x")
    assert os.listdir(place) == ["new"]
    assert not place.is_symlink()
    assert os.listdir(target) == ["precious"]


NOT_JSON = {
    "cut": b"{",
    "empty": b"",
    "not UTF-8": b'"\xff"',
    "long number": b"1" + b"0" * 5000,
    "a list": b"[1]",
    "null": b"null",
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_json_that_cannot_be_read_names_the_file(tmp_path, content):
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(DataError, match=r"m\.json is not a readable manifest"):
        storage.read_json(tmp_path / "m.json", "manifest")


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
def test_what_would_block_or_never_end_is_not_opened(tmp_path, kind):
    path = tmp_path / "m.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        pipe = path if kind == "pipe" else tmp_path / "pipe"
        os.mkfifo(pipe)
        if kind != "pipe":
            path.symlink_to(pipe)
    with pytest.raises(DataError, match=r"m\.json is not a file but"):
        storage.read_json(path, "manifest")
    with pytest.raises(DataError, match=r"m\.json is not a file but"):
        storage.sha256_of(path)


def test_a_link_to_a_file_is_read(tmp_path):
    storage.write_json(tmp_path / "real.json", {"a": 1})
    (tmp_path / "m.json").symlink_to(tmp_path / "real.json")
    assert storage.read_json(tmp_path / "m.json", "manifest") == {"a": 1}


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
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_folder_without_locks_is_locked_in_the_temporary_folder(
    tmp_path, monkeypatch, caplog, number
):
    """As on network drives: the lock works for this machine, and one warning says so."""
    import fcntl

    storage._warn_once.cache_clear()
    share, real = tmp_path / "share", fcntl.flock
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))

    def flock(handle: int, operation: int) -> None:
        inside = {path.stat().st_ino for path in share.iterdir()}
        if os.fstat(handle).st_ino in inside:
            raise OSError(number, os.strerror(number))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.lock(share / "lock"):
        with (
            pytest.raises(ConfigError, match="in use"),
            storage.lock(share / "lock", busy="in use"),
        ):
            pass
        with storage.lock(share / "other lock", busy="in use"):
            pass
    with storage.lock(share / "lock", busy="in use"):
        pass
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"warning: {share} has no file locks"
    ]
    # In a linked folder it is still the same lock.
    (tmp_path / "link").symlink_to(share)
    with (
        storage.lock(share / "lock"),
        pytest.raises(ConfigError, match="in use"),
        storage.lock(tmp_path / "link" / "lock", busy="in use"),
    ):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has another call")
def test_a_machine_without_any_locks_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(ConfigError, match=r"cannot be locked \(.*set NANOCHAT_BASE_DIR or TMPDIR"),
        storage.lock(tmp_path / "lock"),
    ):
        pass


def test_without_fcntl_a_lock_still_keeps_two_apart(tmp_path):
    program = f"""
import pathlib, sys
sys.modules["fcntl"] = None
from nanochat.system import storage
from nanochat.system.errors import ConfigError
path = pathlib.Path({str(tmp_path / "lock")!r})
with storage.lock(path):
    try:
        with storage.lock(path, busy="in use"):
            print("both")
    except ConfigError as error:
        print(error)
with storage.lock(path, busy="in use"):
    print("free again")
"""
    command, env = [sys.executable, "-c", program], {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["in use", "free again"]
    assert f"{tmp_path} has no file locks (fcntl is unavailable)" in done.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [("~nobody-of-this-name/x", "has no known home folder"), ("/x/b\udcff", "is not UTF-8")],
)
def test_a_base_folder_that_cannot_be_used_is_a_users_mistake(monkeypatch, name, problem):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", name)
    with pytest.raises(ConfigError, match=problem):
        storage.base_dir()


def test_a_base_folder_that_cannot_be_made_is_named(tmp_path):
    base = str(tmp_path / "gone")
    text = explain(FileNotFoundError(errno.ENOENT, "No such file", f"{base}/data"), base=base)
    assert text is not None and text.startswith(f"{base} does not exist and cannot be made")


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        storage.write_json(tmp_path / "a.json", {})
    assert caught.value.filename == str(tmp_path / "a.json")


@pytest.mark.parametrize("answer", [OSError(errno.ENOSYS, "no"), AttributeError("statvfs"), None])
def test_free_space_that_the_system_does_not_tell_is_unknown(monkeypatch, tmp_path, answer):
    def usage(_: Path) -> SimpleNamespace:
        if answer is not None:
            raise answer
        return SimpleNamespace(total=0, free=0)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert storage.free_bytes(tmp_path) is None
