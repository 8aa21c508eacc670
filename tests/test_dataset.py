"""Any source of text becomes shards with a fixed split, or an error that says what to do."""

import errno
import gzip
import json
import logging
import os
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import pocket
from nanochat.data import DataOptions, open_data
from nanochat.data import shards as shard_files
from nanochat.data.data_files import find_files
from nanochat.data.dataset import choose_val_frac, document_hash, split_documents
from nanochat.system import config
from nanochat.system.errors import ConfigError, DataError

CORPORA = Path(__file__).parents[2] / "shared" / "data" / "corpora"
TEXTS = [f"Document {i} tells of {i * i} things.\n" for i in range(200)]


def open_texts(tmp_path, data, **options):
    return open_data(DataOptions(data=str(data), **options), base=tmp_path / "base")


def all_texts(dataset):
    return list(dataset.documents("train")), list(dataset.documents("val"))


def texts_of(dataset):
    train, val = all_texts(dataset)
    return sorted(train + val)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def zstd(path, data):
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(data)
    return path


def write_as(folder, kind):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    path = folder / f"texts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=32)
    elif kind == "jsonl":
        path.write_bytes(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    else:
        zstd(path, lines)
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
def test_every_format_gives_the_same_data_set(tmp_path, kind):
    dataset = open_texts(tmp_path, write_as(tmp_path / "in", kind))
    train, val = all_texts(dataset)
    assert sorted(train + val) == sorted(TEXTS)
    reference = open_texts(tmp_path, write_as(tmp_path / "reference", "jsonl"))
    assert dataset.hash == reference.hash
    assert dataset.manifest["shards"] == reference.manifest["shards"]


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst", "md"])
def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path, suffix):
    text = "".join(f"Chapter {i}.\nIt was à long day.\n\n" for i in range(3000))
    path = tmp_path / f"book.{suffix}"
    data = text.encode()
    if suffix.endswith("gz"):
        path.write_bytes(gzip.compress(data))
    elif suffix.endswith("zst"):
        zstd(path, data)
    else:
        path.write_bytes(data)
    train, val = all_texts(open_texts(tmp_path, path))
    assert len(train) > 20 and len(val) >= 1
    assert sum(map(len, train + val)) == len(text)
    assert all(piece.startswith("Chapter") and piece.endswith("\n\n") for piece in train + val)


def test_small_articles_of_a_large_folder_stay_whole(tmp_path):
    folder = tmp_path / "articles"
    folder.mkdir()
    texts = [f"{i} " + "word " * 400 for i in range(60)]
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    train, val = all_texts(open_texts(tmp_path, folder))
    assert sorted(train + val) == sorted(texts)


def test_a_glob_and_a_list_name_files_in_order_and_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text('{"text": "x"}\n', encoding="utf-8")
    found = find_files(f"{tmp_path}/*.jsonl,{tmp_path}/c.txt,{tmp_path}/a.jsonl")
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c.txt"]


def test_a_folder_is_searched_to_its_depths_but_not_its_hidden_files(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    for name in ("deep/er/a.txt", ".cache/b.txt", "deep/c.png"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    assert find_files(str(tmp_path)) == [tmp_path / "deep" / "er" / "a.txt"]


def test_the_split_depends_on_the_text_alone():
    first = {text: split for split, _, text in split_documents(TEXTS, 0.1)}
    again = {text: split for split, _, text in split_documents(reversed(TEXTS), 0.1)}
    assert first == again
    assert 5 < sum(split == "val" for split in first.values()) < 40


def test_equal_documents_share_a_split():
    rows = list(split_documents(TEXTS * 3, 0.2))
    val = {text for split, _, text in rows if split == "val"}
    train = {text for split, _, text in rows if split == "train"}
    assert len(rows) == 600
    assert val and not val & train


def test_two_documents_are_enough_for_a_split():
    rows = list(split_documents(["one", "two"], 0.001))
    assert sorted(split for split, _, _ in rows) == ["train", "val"]


def test_one_document_is_refused_with_the_remedy(tmp_path):
    path = write_jsonl(tmp_path / "one.jsonl", [{"text": "All there is."}])
    with pytest.raises(DataError, match=r"has 1 document, too few .* --val-data FILE"):
        open_texts(tmp_path, path)
    assert [p for p in (tmp_path / "base" / "data").iterdir() if p.is_dir()] == []


def test_one_document_can_be_trained_on_without_validation(tmp_path):
    path = write_jsonl(tmp_path / "one.jsonl", [{"text": "All there is."}])
    dataset = open_texts(tmp_path, path, val_frac=0.0)
    assert list(dataset.documents("train")) == ["All there is."]
    with pytest.raises(DataError, match="no val text; give --val-data"):
        dataset.shards("val")


def test_validation_text_of_its_own_is_used_whole(tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
    val = write_jsonl(tmp_path / "val.jsonl", [{"content": "held"}, {"content": "out"}])
    train, held_out = all_texts(open_texts(tmp_path, data, val_data=str(val)))
    assert train == TEXTS
    assert held_out == ["held", "out"]


def test_one_huge_document_is_kept_whole(tmp_path):
    huge = "palabras y más palabras " * 90_000
    path = write_jsonl(tmp_path / "huge.jsonl", [{"text": huge}, {"text": "small"}])
    train, val = all_texts(open_texts(tmp_path, path))
    assert sorted(train + val) == sorted([huge, "small"])


def test_blank_documents_are_skipped_and_counted(tmp_path, caplog):
    rows = [{"text": text} for text in (*TEXTS, "", " \n", None)]
    with caplog.at_level(logging.INFO):
        dataset = open_texts(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows))
    assert texts_of(dataset) == sorted(TEXTS)
    assert "skipped 3 empty documents" in caplog.text


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "one"}\n{"text": "two"}\n')
    assert texts_of(open_texts(tmp_path, path)) == ["one", "two"]


BAD_FILES = {
    "empty.txt": (b"", "has no text to train on"),
    "blank.txt": (b"  \n\n ", "has no text to train on"),
    "latin1.txt": ("day\ncafé".encode("latin-1"), r"line 2, byte 7: not UTF-8; .*--invalid-utf8"),
    "utf16.txt": ("day".encode("utf-16"), "looks like UTF-16"),
    "latin1.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}', "line 2, byte 24: not UTF-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', r"line 2: not JSON \("),
    "array.json": (b'[{"text": "a"}, 7]', "array.json, item 2: int instead of an object"),
    "array.jsonl": (b'[{"text": "a"}]', "line 1: a list of objects; .* name it .json"),
    "torn.json": (b'[{"text": "a"},\n{"text": ', r"torn.json: not JSON \(Expecting value: line 2"),
    "digits.jsonl": (b'{"text": "a"}\n{"a": 1' + b"0" * 5000, r"line 2: not JSON \(Exceeds"),
    "digits.json": (b'[{"a": 1' + b"0" * 5000 + b"}]", r"digits.json: not JSON \(Exceeds"),
    "deep.jsonl": (b"[" * 100_000, "line 1: not JSON"),
    "deep.json": (b"[" * 100_000, "deep.json: not JSON"),
    "keys.jsonl": (
        b'{"body": "a", "id": 3}',
        "line 1: no column 'text' or 'content'; columns: body, id; .*--text-column",
    ),
    "number.jsonl": (b'{"text": 3}', "line 1: 'text' holds int, not text"),
    "chat.jsonl": (b'{"messages": []}', "a conversation, not text; it is data for chat_sft"),
    "half.jsonl": (rb'{"text": "\ud83d"}', "line 1: half a surrogate pair"),
    "cut.txt.gz": (gzip.compress(os.urandom(9000))[:4000], "is damaged or cut short"),
    "plain.txt.gz": (b"not packed at all", "is damaged or cut short"),
    "plain.txt.zst": (b"not packed at all", "cannot be read|damaged"),
    "rubbish.parquet": (b"PAR1 not really", "is damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_naming_file_and_place(tmp_path, name):
    data, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        open_texts(tmp_path, path)
    assert "\n" not in str(caught.value)
    if data.strip():
        assert name in str(caught.value)
    assert [p for p in (tmp_path / "base" / "data").iterdir() if p.is_dir()] == []


def test_a_cut_zstd_file_is_refused(tmp_path):
    path = zstd(tmp_path / "a.txt.zst", os.urandom(9000).hex().encode())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"a\.txt\.zst .*(cut short|cannot be read)"):
        open_texts(tmp_path, path)


def test_parquet_of_other_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text' or 'content'; columns: body"):
        open_texts(tmp_path, tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column 'text' has type int64, not text"):
        open_texts(tmp_path, tmp_path / "b.parquet")


def test_parquet_with_bytes_that_are_not_utf8_names_the_row(tmp_path):
    raw = pa.array([b"fine", b"caf\xe9"], type=pa.binary())
    column = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2, byte 3: not UTF-8"):
        open_texts(tmp_path, tmp_path / "a.parquet")
    dataset = open_texts(tmp_path, tmp_path / "a.parquet", invalid_utf8="replace")
    assert texts_of(dataset) == ["caf\ufffd", "fine"]


def test_invalid_bytes_can_be_replaced_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud83d!"}\n{"text": "fine \xef\xbf\xbd"}\n')
    dataset = open_texts(tmp_path, path, invalid_utf8="replace")
    assert texts_of(dataset) == ["caf\ufffd", "fine \ufffd", "\ufffd!"]
    assert "replaced about 2 invalid bytes" in caplog.text


def test_an_invalid_byte_at_the_edge_of_a_chunk_is_placed_right(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" * (1 << 19) + b"\xc3(")  # the chunk ends before the broken pair
    with pytest.raises(DataError, match=f"line {(1 << 19) + 1}, byte {1 << 20}: not UTF-8"):
        open_texts(tmp_path, path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing.txt", "no such file, folder or glob match"),
        ("*.jsonl", "no such file, folder or glob match"),
        ("folder", r"has no text; left out image\.png \(not of a known format\)"),
        ("folder/image.png", "this kind of file is not read"),
    ],
)
def test_names_that_lead_nowhere_are_refused(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "image.png").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        open_texts(tmp_path, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", " "], "--data is empty"),
        (["--val-frac", "0.9"], "--val-frac must be from 0 to 0.5 or none, got 0.9"),
        (["--val-frac", "0.1", "--val-data", "x.txt"], "exclude each other"),
        (["--shards", "0"], "--shards must be at least 1 or auto, got 0"),
        (["--pocket-characters", "10"], "--pocket-characters must be at least 10,000, got 10"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(DataOptions, options, stage="x")


def test_sources_with_a_split_of_their_own_take_no_other(tmp_path):
    with pytest.raises(ConfigError, match="--val-frac does not go with --data climbmix"):
        open_texts(tmp_path, "climbmix", val_frac=0.1)


def test_the_held_out_share_follows_from_the_size():
    assert choose_val_frac(0.3, 10) == 0.3
    assert choose_val_frac(None, 1_000_000) == 0.1
    assert choose_val_frac(None, 100_000_000) == 0.01
    assert choose_val_frac(None, 10**12) == 0.0005


def test_a_second_opening_reads_nothing_again(tmp_path):
    path = write_as(tmp_path / "in", "jsonl")
    first = open_texts(tmp_path, path)
    made = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    second = open_texts(tmp_path, path)
    assert second.hash == first.hash
    assert {p: p.stat().st_mtime_ns for p in second.folder.iterdir()} == made


def test_changed_files_make_another_data_set(tmp_path):
    path = write_as(tmp_path / "in", "jsonl")
    first = open_texts(tmp_path, path)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": "one more"}\n')
    second = open_texts(tmp_path, path)
    assert second.folder != first.folder and second.hash != first.hash


def test_a_torn_shard_is_made_anew(tmp_path):
    path = write_as(tmp_path / "in", "jsonl")
    dataset = open_texts(tmp_path, path)
    shard = dataset.folder / dataset.shards("train")[0].file
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged"):
        list(dataset.documents("train"))
    again = open_texts(tmp_path, path)
    assert again.hash == dataset.hash
    assert texts_of(again) == sorted(TEXTS)


def test_a_failure_half_way_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 5000 + b"broken\n")
    with pytest.raises(DataError, match="line 5001"):
        open_texts(tmp_path, path)
    assert [p.name for p in (tmp_path / "base" / "data").iterdir() if p.is_dir()] == []


def test_a_full_disk_leaves_nothing_behind_and_says_where(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left") as caught:
        open_texts(tmp_path, write_as(tmp_path / "in", "jsonl"))
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "base" / "data" / "texts-") in caught.value.filename
    assert [p for p in (tmp_path / "base" / "data").iterdir() if p.is_dir()] == []


def test_large_data_is_dealt_to_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "SHARD_CHARACTERS", 1000)
    monkeypatch.setattr(shard_files, "ROW_GROUP_CHARACTERS", 300)
    dataset = open_texts(tmp_path, write_as(tmp_path / "in", "jsonl"))
    shards = dataset.shards("train")
    assert len(shards) > 3
    assert all(shard.characters < 1100 for shard in shards)
    assert [s.file for s in dataset.all_shards] == sorted(s.file for s in dataset.all_shards)
    assert texts_of(dataset) == sorted(TEXTS)
    assert dataset.characters("train") == sum(map(len, dataset.documents("train")))


def test_two_that_open_the_same_data_at_once_prepare_it_once(tmp_path, caplog):
    path = write_as(tmp_path / "in", "jsonl")
    found = []
    workers = [
        threading.Thread(target=lambda: found.append(open_texts(tmp_path, path))) for _ in range(3)
    ]
    with caplog.at_level(logging.INFO):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert len(found) == 3 and len({dataset.hash for dataset in found}) == 1
    assert caplog.text.count("preparing dataset") == 1


@pytest.mark.timeout(60)
def test_pocket_is_made_in_the_size_asked_for(tmp_path):
    options = DataOptions(pocket_characters=100_000)
    dataset = open_data(options, base=tmp_path)
    train, val = all_texts(dataset)
    assert 100_000 <= dataset.characters("train") == sum(map(len, train)) < 110_000
    assert 10_000 <= sum(map(len, val)) < 20_000
    assert open_data(options, base=tmp_path).hash == dataset.hash
    assert open_data(options, base=tmp_path / "other").hash == dataset.hash


def test_the_hash_of_a_document_never_changes():
    assert document_hash("hello") == 9022087748821825191  # b2sum -l 64, little end first


@pytest.mark.skipif(not CORPORA.exists(), reason=f"no corpora in {CORPORA}")
def test_tinyshakespeare_splits_by_itself(tmp_path):
    dataset = open_texts(tmp_path, CORPORA / "tinyshakespeare.txt")
    train, val = all_texts(dataset)
    text = (CORPORA / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert sum(map(len, train + val)) == len(text)
    assert 0.02 < sum(map(len, val)) / len(text) < 0.2
    assert all(piece in text for piece in train + val)


@pytest.mark.parametrize("name", ["mixtures.py", "wordings.txt"])
def test_pocket_is_made_anew_when_a_table_or_its_code_has_changed(tmp_path, monkeypatch, name):
    copy = tmp_path / "pocket"
    shutil.copytree(Path(pocket.__file__).parent, copy)
    monkeypatch.setattr(pocket, "__file__", str(copy / "__init__.py"))
    options = DataOptions(pocket_characters=20_000)

    def folders() -> set[str]:
        open_data(options, base=tmp_path)
        return {path.name for path in (tmp_path / "data").iterdir() if path.is_dir()}

    before = folders()
    assert folders() == before
    with (copy / name).open("a") as file:
        file.write("\n")
    assert len(folders()) == len(before) + 1
