"""Downloads survive every kind of network failure; the server is local."""

import contextlib
import hashlib
import http.server
import io
import logging
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import DataOptions, hub, open_data
from nanochat.data.hub import HubName, HubShards, parse_name
from nanochat.stages import fetch as fetch_stage
from nanochat.system import downloads, storage
from nanochat.system.downloads import fetch
from nanochat.system.errors import ConfigError, DataError
from nanochat.system.storage import sha256_of

DATA = bytes(range(256)) * 9000  # more than two chunks


class Server:
    """Serves files with planned failures, one plan per request."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.plans: dict[str, list[dict]] = {}
        self.always: dict[str, dict] = {}
        self.seen: list[tuple[str, str | None, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler):
        path, wanted = handler.path, handler.headers.get("Range")
        self.seen.append((path, wanted, handler.headers.get("Authorization")))
        plan = self.plans[path].pop(0) if self.plans.get(path) else self.always.get(path, {})
        headers = dict(plan.get("headers", {}))
        if "status" in plan:
            handler.send_response(plan["status"])
            for name, value in {"Content-Length": "0", **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            return
        if path not in self.files:
            handler.send_error(404)
            return
        data = plan.get("data", self.files[path])
        start = 0
        tag = headers.get("ETag", '"v1"')
        same = handler.headers.get("If-Range", tag) == tag
        if wanted and same and not plan.get("no_range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(data) and start:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            shown = start + plan.get("range_shift", 0)
            handler.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        headers = {"ETag": tag, "Content-Length": str(len(data) - start), **headers}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        body = data[start:]
        handler.wfile.write(body[: plan.get("stop_after", len(body))])
        if "stop_after" in plan:
            handler.wfile.flush()
            with contextlib.suppress(OSError):
                handler.connection.close()
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    made.files["/file"] = DATA
    yield made
    made.http.shutdown()
    made.http.server_close()


def get(server, path, name="/file", **options):
    fetch(server.url + name, path, wait_s=0.001, **options)
    return path.read_bytes()


def linked(data, **more):
    headers = {
        "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        "X-Linked-Size": str(len(data)),
    }
    return {**headers, **more}


def files_in(folder):
    """Everything but lock files."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "deep" / "file"
    digest = hashlib.sha256(DATA).hexdigest()
    assert get(server, path, sha256=digest, size=len(DATA)) == DATA
    assert get(server, path) == DATA
    assert len(server.seen) == 1
    assert files_in(path.parent) == ["file"]


def test_a_dropped_connection_is_resumed_where_it_broke(server, tmp_path):
    server.plans["/file"] = [{"stop_after": 1_500_000}, {"stop_after": 200_000}]
    assert get(server, tmp_path / "file") == DATA
    assert server.seen[0][1] is None
    starts = [int(seen[1].removeprefix("bytes=").rstrip("-")) for seen in server.seen[1:]]
    assert starts == sorted(starts) and starts[-1] == 1_700_000


def test_what_a_killed_process_left_is_not_fetched_again(server, tmp_path):
    (tmp_path / ".file.part").write_bytes(DATA[:1000])
    assert get(server, tmp_path / "file") == DATA
    assert server.seen == [("/file", "bytes=1000-", None)]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.plans["/file"] = [{"stop_after": 1_500_000}, {"no_range": True}]
    assert get(server, tmp_path / "file") == DATA


def test_a_file_that_changed_meanwhile_is_not_mixed(server, tmp_path):
    server.plans["/file"] = [{"stop_after": 1_500_000, "data": b"old" * len(DATA)}]
    server.always["/file"] = {"headers": {"ETag": '"v2"'}}
    assert get(server, tmp_path / "file") == DATA


def test_a_part_that_is_already_complete_is_accepted(server, tmp_path):
    (tmp_path / ".file.part").write_bytes(DATA)
    assert get(server, tmp_path / "file", sha256=hashlib.sha256(DATA).hexdigest()) == DATA


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / ".file.part").write_bytes(DATA + b"more")
    assert get(server, tmp_path / "file") == DATA


def test_a_range_at_the_wrong_offset_is_not_used(server, tmp_path):
    server.plans["/file"] = [{"stop_after": 1000}, {"range_shift": 5}]
    assert get(server, tmp_path / "file") == DATA


@pytest.mark.parametrize("length", [len(DATA) + 500, len(DATA) - 500])
def test_a_server_that_lies_about_the_length_is_found_out(server, tmp_path, length):
    lie = {"headers": linked(DATA, **{"Content-Length": str(length)})}
    server.plans["/file"] = [lie]
    assert get(server, tmp_path / "file") == DATA


def test_a_body_that_stays_short_is_an_error(server, tmp_path):
    server.always["/file"] = {"data": DATA[:1000], "headers": {"X-Linked-Size": "2000"}}
    with pytest.raises(DataError, match=r"1,000 of 2,000 bytes; check the network"):
        get(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_body_longer_than_stated_is_an_error(server, tmp_path):
    with pytest.raises(DataError, match=r"bytes, expected 1,000, twice"):
        get(server, tmp_path / "file", size=1000)
    assert files_in(tmp_path) == []


def test_one_damaged_copy_is_fetched_again(server, tmp_path):
    server.always["/file"] = {"headers": linked(DATA)}
    server.plans["/file"] = [{"data": b"\0" * len(DATA), "headers": linked(DATA)}]
    assert get(server, tmp_path / "file") == DATA


def test_a_wrong_hash_is_an_error_and_leaves_nothing(server, tmp_path):
    server.always["/file"] = {"headers": linked(b"something else", **{"X-Linked-Size": ""})}
    with pytest.raises(DataError, match=r"its sha256 is \w{12}\.\.\., expected \w{12}\.\.\."):
        get(server, tmp_path / "file")
    assert files_in(tmp_path) == []
    server.always.clear()
    with pytest.raises(DataError, match="its sha256 is"):
        get(server, tmp_path / "file", sha256="0" * 64)


def test_a_git_hash_is_not_taken_for_a_sha256(server, tmp_path):
    server.always["/file"] = {"headers": {"X-Linked-ETag": '"' + "a" * 40 + '"'}}
    assert get(server, tmp_path / "file") == DATA


def test_temporary_errors_are_retried(server, tmp_path):
    busy = [{"status": code} for code in (500, 503, 502)]
    server.plans["/file"] = [*busy, {"status": 429, "headers": {"Retry-After": "0"}}]
    assert get(server, tmp_path / "file") == DATA


@pytest.mark.parametrize(
    ("status", "remedy"), [(404, "check the address"), (401, "HF_TOKEN"), (403, "HF_TOKEN")]
)
def test_permanent_errors_are_raised_at_once(server, tmp_path, status, remedy):
    server.always["/file"] = {"status": status}
    with pytest.raises(DataError, match=f"HTTP {status} .*{remedy}"):
        get(server, tmp_path / "file")
    assert len(server.seen) == 1


def test_a_dead_network_is_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError, match=r"cannot download .*refused; check the network") as caught:
        fetch("http://127.0.0.1:9/file", tmp_path / "file", wait_s=0.001)
    assert "\n" not in str(caught.value)


def test_the_hash_on_a_redirect_is_checked_and_the_token_is_not_forwarded(server, tmp_path):
    other = Server()
    try:
        other.files["/cdn"] = DATA
        moved = {"Location": other.url + "/cdn"}
        server.always["/file"] = {"status": 302, "headers": linked(DATA, **moved)}
        assert get(server, tmp_path / "a", token="secret") == DATA
        assert server.seen[0][2] == "Bearer secret"
        assert other.seen == [("/cdn", None, None)]
        other.files["/cdn"] = DATA[:-1] + b"\0"
        with pytest.raises(DataError, match="its sha256 is"):
            get(server, tmp_path / "b")
    finally:
        other.http.shutdown()
        other.http.server_close()


def test_progress_counts_what_was_there_before(server, tmp_path):
    (tmp_path / ".file.part").write_bytes(DATA[:1000])
    calls = []
    get(server, tmp_path / "file", progress=lambda done, length: calls.append((done, length)))
    assert calls[0] == (1000, None)
    assert calls[-1] == (len(DATA), len(DATA))


def test_several_at_once_fetch_a_file_once(server, tmp_path):
    workers = [
        threading.Thread(target=fetch, args=(server.url + "/file", tmp_path / "file"))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert len(server.seen) == 1
    assert (tmp_path / "file").read_bytes() == DATA


def parquet(texts, column="text"):
    out = io.BytesIO()
    pq.write_table(pa.table({column: texts}), out, compression="zstd")
    return out.getvalue()


SHARDS = 5
REPOSITORY = "someone/some-shards"


def shard_path(index):
    return f"/datasets/{REPOSITORY}/resolve/main/shard_{index:05d}.parquet"


@pytest.fixture
def shards(server, monkeypatch):
    """A hub with a dataset of five shards, of which the last is for validation."""
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setitem(hub.HUB_SHARDS, "climbmix", HubShards(REPOSITORY, SHARDS))
    original = downloads.fetch
    monkeypatch.setattr(
        downloads, "fetch", lambda *args, **options: original(*args, **options, wait_s=0.001)
    )
    for index in range(SHARDS):
        data = parquet([f"Shard {index} has text {i}." for i in range(3000)])
        server.files[shard_path(index)] = data
        server.always[shard_path(index)] = {"headers": linked(data)}
    return server


def open_climbmix(tmp_path, count=2):
    return open_data(DataOptions(data="climbmix", shards=count), base=tmp_path)


def test_the_last_shard_is_validation_and_only_requested_shards_are_fetched(shards, tmp_path):
    dataset = open_climbmix(tmp_path)
    assert [s.file for s in dataset.shards("train")] == [f"shard_{i:05d}.parquet" for i in (0, 1)]
    assert [s.file for s in dataset.shards("val")] == ["shard_00004.parquet"]
    assert next(iter(dataset.documents("val"))) == "Shard 4 has text 0."
    assert len(list(dataset.documents("train"))) == 6000
    assert sorted(seen[0] for seen in shards.seen) == [shard_path(i) for i in (0, 1, 4)]
    assert {seen[2] for seen in shards.seen} == {"Bearer secret"}


def test_more_shards_fetch_only_the_new_ones(shards, tmp_path):
    small = open_climbmix(tmp_path)
    shards.seen.clear()
    large = open_climbmix(tmp_path, 3)
    assert [seen[0] for seen in shards.seen] == [shard_path(2)]
    assert small.hash != large.hash
    assert open_climbmix(tmp_path).hash == small.hash
    assert len(shards.seen) == 1


def test_shards_survive_drops_lies_and_damage(shards, tmp_path, caplog):
    for index, plan in enumerate(
        [{"stop_after": 700}, {"headers": {"Content-Length": "99999"}}, {"data": b"x" * 500}]
    ):
        headers = {**linked(shards.files[shard_path(index)]), **plan.get("headers", {})}
        shards.plans[shard_path(index)] = [{**plan, "headers": headers}]
    with caplog.at_level(logging.INFO):
        dataset = open_climbmix(tmp_path, 3)
    assert len(list(dataset.documents("train"))) == 9000
    assert "climbmix: 4 of 4 shards" in caplog.text
    for shard in dataset.all_shards:
        assert shard.digest == sha256_of(dataset.folder / shard.file)


def test_a_missing_shard_is_an_error_and_never_a_smaller_data_set(shards, tmp_path):
    del shards.files[shard_path(4)], shards.always[shard_path(4)]
    with pytest.raises(DataError, match=r"shard_00004\.parquet: HTTP 404"):
        open_climbmix(tmp_path)


def test_a_shard_that_lost_its_end_on_disk_is_fetched_again(shards, tmp_path):
    dataset = open_climbmix(tmp_path)
    path = dataset.folder / "shard_00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    shards.seen.clear()
    assert open_climbmix(tmp_path).hash == dataset.hash
    assert [seen[0] for seen in shards.seen] == [shard_path(1)]
    assert len(list(dataset.documents("train"))) == 6000


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"<html>busy</html>", "is not a parquet file"), (parquet(["a"], "body"), "no column 'text'")],
)
def test_an_invalid_shard_is_an_error(shards, tmp_path, data, message):
    shards.files[shard_path(0)] = data
    shards.always[shard_path(0)] = {}
    with pytest.raises(DataError, match=message):
        open_climbmix(tmp_path)


def test_more_shards_than_exist_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="--shards 6543: climbmix has 6542 training shards"):
        open_climbmix(tmp_path, 6543)


def test_a_shard_another_process_has_just_fetched_again_is_kept(shards, tmp_path, monkeypatch):
    """It was incomplete when both looked; the second to get to it must not delete it."""
    dataset = open_climbmix(tmp_path)
    path = dataset.folder / "shard_00001.parquet"
    complete = path.read_bytes()
    path.write_bytes(complete[:100])
    real, hashed = storage.lock, []

    @contextlib.contextmanager
    def late_lock(lock_path, **options):
        if lock_path.name == ".shard_00001.parquet.shard.lock":
            path.write_bytes(complete)  # while this process waited
        with real(lock_path, **options):
            yield

    monkeypatch.setattr(storage, "lock", late_lock)
    monkeypatch.setattr(hub, "_describe", lambda *args: hashed.append(args))
    shards.seen.clear()
    assert open_climbmix(tmp_path).hash == dataset.hash
    assert shards.seen == hashed == []


def test_as_many_shards_are_fetched_as_have_the_text_that_is_needed(shards, tmp_path):
    options = DataOptions(data="climbmix").enough_for(260_000_000)
    assert options.shards == 2
    assert len(open_data(options, base=tmp_path).shards("train")) == 2
    assert DataOptions(data="climbmix").enough_for(1e15).shards == SHARDS - 1
    assert DataOptions(data="climbmix", shards=3).enough_for(1).shards == 3
    assert DataOptions(data="pocket").enough_for(1e15) == DataOptions(data="pocket")


def test_fetch_downloads_the_text_of_base_training_and_nothing_else(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    preset = tmp_path / "my.toml"
    preset.write_text(
        '[common]\ndata = "climbmix"\n[tok_train]\nshards = 1\nvocab-size = 1000\n'
        '[base_train]\nshards = "auto"\ndepth = 2\nratio = 100\ntokens = 100_000_000\n'
    )
    fetch_stage.main(["--preset", str(preset)])
    assert sorted(seen[0] for seen in shards.seen) == [shard_path(i) for i in (0, 1, 2, 4)]
    shards.seen.clear()
    fetch_stage.main(["--preset", "pocket"])
    assert shards.seen == []


def test_two_openers_share_the_work(shards, tmp_path):
    found = []
    workers = [
        threading.Thread(target=lambda: found.append(open_climbmix(tmp_path, 4).hash))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(set(found)) == 1 and len(found) == 2
    assert len(shards.seen) == SHARDS


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("hf:a/b", HubName("a/b", None, "train")),
        ("hf:a/b:en", HubName("a/b", "en", "train")),
        ("hf:a/b:test", HubName("a/b", None, "test")),
        ("hf:a/b:train[:10%]", HubName("a/b", None, "train[:10%]")),
        ("hf:a/b:en:validation", HubName("a/b", "en", "validation")),
        ("hf:a/b::validation", HubName("a/b", None, "validation")),
        ("hf:", None),
    ],
)
def test_hub_names_are_read_or_refused(spec, name):
    if name is None:
        with pytest.raises(ConfigError, match="write hf:ORG/NAME"):
            parse_name(spec)
    else:
        assert parse_name(spec) == name


class FakeDatasets:
    """Stands in for the `datasets` package."""

    def __init__(self, rows):
        self.rows = rows
        self.calls = []

    def disable_progress_bars(self):
        """As the package has it; there are none here."""

    def load_dataset(self, *args, **options):
        self.calls.append((args, options))
        if isinstance(self.rows, Exception):
            raise self.rows
        return iter(self.rows)


def test_a_hub_data_set_is_streamed_into_shards(tmp_path, monkeypatch):
    rows = [{"text": f"Row {i}.", "id": i} for i in range(300)] + [{"text": ""}, {"text": None}]
    fake = FakeDatasets(rows)
    monkeypatch.setitem(__import__("sys").modules, "datasets", fake)
    options = DataOptions(data="hf:a/b:en", val_frac=0.1)
    dataset = open_data(options, base=tmp_path)
    train, val = list(dataset.documents("train")), list(dataset.documents("val"))
    assert sorted(train + val) == sorted(f"Row {i}." for i in range(300))
    assert 10 < len(val) < 60
    assert dataset.name.startswith("a-b-en-train-")
    assert fake.calls == [(("a/b", "en"), {"split": "train", "streaming": True})]
    assert open_data(options, base=tmp_path).hash == dataset.hash
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ConnectionError("no route\nto host"), r"hf:a/b \(config None, split train\).*no route;"),
        ([{"body": "x"}], "hf:a/b, row 1: no column 'text' or 'content'; columns: body; "),
        ([], "has no text to train on"),
    ],
)
def test_a_hub_data_set_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, rows, message):
    monkeypatch.setitem(__import__("sys").modules, "datasets", FakeDatasets(rows))
    with pytest.raises(DataError, match=message) as caught:
        open_data(DataOptions(data="hf:a/b"), base=tmp_path)
    assert "\n" not in str(caught.value)
