"""Which files --data names: globs, lists, odd names; and what of a folder is no training text."""

import gzip
import json
import logging
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import DataOptions, open_data
from nanochat.data.data_files import find_files, find_splits
from nanochat.system.errors import DataError

ROWS = '{"text": "x"}\n{"text": "y"}\n'
INFO = '{"default": {"splits": {}}}'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "found"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def make(folder, names):
    for name in names.split():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(ROWS.encode()))
        else:
            path.write_text(ROWS if "info" not in name else INFO, encoding="utf-8")


def names_of(folder, files):
    return " ".join(str(path.absolute().relative_to(folder)) for path in files)


# --- folders

FOLDERS = {  # the files of a folder, what is trained on, what is validated on
    "a cloned dataset": (
        "README.md LICENSE dataset_infos.json data/train-00000-of-00002.parquet "
        "data/train-00001-of-00002.parquet data/validation-00000-of-00001.parquet "
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
        "data/validation-00000-of-00001.parquet",
    ),
    "several splits of one kind": (
        "data/test_gen-0.parquet data/test_sft-0.parquet data/train_gen-0.parquet "
        "data/train_sft-0.parquet",
        "data/train_gen-0.parquet data/train_sft-0.parquet",
        "",
    ),
    "a split after the name": (
        "en/c4-train.00000-of-01024.json.gz en/c4-validation.00000-of-00008.json.gz",
        "en/c4-train.00000-of-01024.json.gz",
        "en/c4-validation.00000-of-00008.json.gz",
    ),
    "splits as folders": (
        "a.jsonl dev/a.jsonl split=test/a.jsonl TRAIN/a.jsonl",
        "TRAIN/a.jsonl",
        "dev/a.jsonl",
    ),
    "unmarked files": (
        "a.jsonl b.test.jsonl b.jsonl contest.jsonl",
        "a.jsonl b.jsonl contest.jsonl",
        "",
    ),
    "unmarked files elsewhere": (
        "books/all.jsonl books/test.jsonl books/train.jsonl wiki/a.jsonl",
        "books/train.jsonl wiki/a.jsonl",
        "",
    ),
    "documentation beside rows": (
        "CHANGELOG.txt README_de.txt a.jsonl docs/guide.md novel.txt sha256sums.txt",
        "a.jsonl novel.txt",
        "",
    ),
    "packed copies": ("a.jsonl a.jsonl.gz b.jsonl.gz", "a.jsonl b.jsonl.gz", ""),
    "hidden files": (".cache/a.jsonl .b.jsonl c.jsonl", "c.jsonl", ""),
    "plain texts that are split": (
        "wiki.test.txt wiki.train.txt wiki.valid.txt",
        "wiki.train.txt",
        "wiki.valid.txt",
    ),
    "plain texts in folders": ("test/neg/1.txt test/pos/1.txt train/1.txt", "train/1.txt", ""),
    "plain texts in a folder and a file": ("test.txt train/1.txt", "train/1.txt", ""),
    "articles and metadata": ("a.txt b.md dataset_info.json", "a.txt b.md", ""),
}


# Without a counterpart for training, such a name is a title.
TITLES = (
    "Bullet_train.txt LICENSE.txt README.md chapter_1.txt chapter_1_test.txt dev.md dev/ops.md "
    "development/a.txt drivers.txt drivers_test.txt evaluation/essay.txt evaluation_of_art.txt "
    "holdout.txt src/a.txt test.txt test/b.txt test_flight.txt testing/c.txt val_de_loire.md"
)


def test_no_book_is_lost_for_its_title_and_a_doubtful_one_is_said(folder, caplog):
    make(folder, TITLES)
    with caplog.at_level(logging.INFO):
        assert sorted(map(str, find_splits(".")[0])) == sorted(TITLES.split())
        assert find_splits(".")[1] == []
    assert "taking chapter_1_test.txt, dev.md, dev/ops.md, drivers_test.txt" in caplog.text
    make(folder, "train.txt")
    assert set(TITLES.split()) - set(map(str, find_splits(".")[0])) == {
        *("dev.md", "dev/ops.md", "evaluation/essay.txt", "holdout.txt"),
        *("test.txt", "test/b.txt", "testing/c.txt"),
    }


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_gives_training_text_alone(folder, caplog, case):
    names, train, val = FOLDERS[case]
    make(folder, names)
    with caplog.at_level(logging.INFO):
        found = find_splits(str(folder))
    assert tuple(names_of(folder, files) for files in found) == (train, val)
    assert names_of(folder, find_files(str(folder))) == train
    hidden = {name for name in names.split() if name.startswith(".")}
    others = set(names.split()) - set(train.split()) - hidden
    line = caplog.messages[0] if others else ""
    assert all(name in line for name in others), "what is not trained on is named"


def test_validation_files_are_found_where_they_are_asked_for(folder):
    make(folder, "dev.jsonl test.jsonl train.jsonl")
    assert names_of(folder, find_files(".", flag="--val-data", split="val")) == "dev.jsonl"
    (folder / "dev.jsonl").unlink()
    assert names_of(folder, find_files(".", flag="--val-data", split="val")) == "test.jsonl"
    assert names_of(folder, find_files(".", split=None)) == "test.jsonl train.jsonl"
    (folder / "test.jsonl").unlink()
    assert names_of(folder, find_files(".", flag="--val-data", split="val")) == "train.jsonl"


def test_a_folder_of_held_out_files_alone_is_refused_and_a_glob_takes_them(folder):
    make(folder, "data/test-0.parquet data/validation-0.parquet")
    with pytest.raises(
        DataError, match=r"marks? all as .*data/test-0\.parquet.*own path or a glob"
    ):
        find_splits(".")
    assert names_of(folder, find_files("data/test*")) == "data/test-0.parquet"
    assert names_of(folder, find_files("data/test-0.parquet")) == "data/test-0.parquet"


def test_a_glob_leaves_out_what_a_folder_does(folder, caplog):
    make(folder, "d/README.md d/a.jsonl d/image.png d/test.jsonl test/b.jsonl")
    with caplog.at_level(logging.INFO):
        assert names_of(folder, find_files("d/*")) == "d/a.jsonl"
    for name in ("README.md (about the data)", "image.png (not of", "test.jsonl (test data)"):
        assert name in caplog.text
    assert names_of(folder, find_files("**/*.jsonl")) == "d/a.jsonl"
    assert names_of(folder, find_files("test/*")) == "test/b.jsonl", "named outside the pattern"


@pytest.mark.parametrize(
    ("content", "is_data"),
    [
        ('{"a": {"b": 1}}', False),
        ('\ufeff{\n  "citation": "..."\n}\n', False),
        ('["dog", "cat"]', False),
        ("[]", False),
        ("3", False),
        ('{"body": "a"}\n{"body": "b"}\n', True),
        ('[{"body": "a"}]', True),
        ('[\n  {"body": "a"}]', True),
        ('{\n  "text": "a"\n}', True),
        ('{"messages": []}', True),
        ('{\n"body": "a"\n}\n{\n"body": "b"}', True),
        ('{"torn": ', True),
    ],
)
def test_metadata_is_told_from_rows_by_what_it_holds(folder, content, is_data):
    make(folder, "a.jsonl")
    (folder / "b.json").write_text(content, encoding="utf-8")
    assert names_of(folder, find_files(".")) == "a.jsonl b.json"[: 14 if is_data else 7]


def test_a_folder_without_text_says_what_is_in_it(folder):
    make(folder, "data-0.arrow dataset_info.json info/state.json")
    with pytest.raises(DataError) as caught:
        find_files(".")
    assert "data-0.arrow (not of a known format); dataset_info.json" in str(caught.value)


def test_links_give_no_file_twice_and_no_circle(folder):
    make(folder, "real/a.jsonl real/b.jsonl ../elsewhere/c.jsonl")
    (folder / "again").symlink_to(folder / "real")
    (folder / "real" / "up").symlink_to(folder)
    (folder / "real" / "self").symlink_to(folder / "real")
    (folder / "d.jsonl").symlink_to(folder / "real" / "b.jsonl")
    (folder / "other").symlink_to(folder.parent / "elsewhere")
    (folder / "gone.jsonl").symlink_to(folder / "nothing")
    found = "again/a.jsonl again/b.jsonl other/c.jsonl"
    assert names_of(folder, find_files(".")) == found
    assert names_of(folder, find_files("**/*.jsonl,again,real/a.jsonl")) == found


def test_files_that_validate_are_not_trained_on(folder, caplog):
    make(folder, "a.jsonl b.jsonl")
    val = [folder / "b.jsonl"]
    assert names_of(folder, find_files(".", without=val)) == "a.jsonl"
    assert names_of(folder, find_files("a.jsonl,b.jsonl", without=val)) == "a.jsonl b.jsonl"
    with pytest.raises(DataError, match="all its files are given as validation data"):
        find_files("b*", without=val)


# --- paths


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("texts [v2]/*.jsonl", "texts [v2]/a.jsonl"),
        ("texts [v2]/**", "texts [v2]/a.jsonl texts [v2]/sub[1]/b[2].jsonl"),
        ("*/sub[1]/*", "texts [v2]/sub[1]/b[2].jsonl"),
        ("texts [v2]/a.jsonl", "texts [v2]/a.jsonl"),
        ("texts [v2]/[ab].jsonl", "texts [v2]/a.jsonl"),
        ("a,b.txt", "a,b.txt"),
        ("c.txt, a,b.txt", "c.txt a,b.txt"),
        ("a,b.txt,c.txt,", "a,b.txt c.txt"),
        ("x, y/*.txt,c.txt", "x, y/d.txt c.txt"),
        ("c?.txt", "c?.txt"),
        ("what?*{a,b}/*", "what?*{a,b}/e.txt"),
        ("~x/f.txt", "~x/f.txt"),
        ("~/g.txt", "home/g.txt"),
        ("folder.jsonl", "folder.jsonl/h.txt"),
    ],
)
def test_a_path_that_exists_is_no_pattern_and_no_list(folder, monkeypatch, spec, found):
    monkeypatch.setenv("HOME", str(folder / "home"))
    for name in (
        "texts [v2]/a.jsonl",
        "texts [v2]/sub[1]/b[2].jsonl",
        *("a,b.txt", "c.txt", "x, y/d.txt", "c?.txt", "cc.txt", "what?*{a,b}/e.txt"),
        *("~x/f.txt", "home/g.txt", "folder.jsonl/h.txt"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROWS, encoding="utf-8")
    assert names_of(folder, find_files(spec)) == found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no [x]/*.txt", r"--data no \[x\]/\*\.txt: no such file, folder or glob match"),
        ("a.txt,{b,c}.txt", r"--data a\.txt,\{b,c\}\.txt: no .* match for '\{b'.*comma"),
        ("~nobody-at-all/a.txt", "--data ~nobody-at-all/a.txt: no such user"),
        ("x" * 5000, "no such file"),
        ("pipe.jsonl", "pipe.jsonl is a pipe or a device"),
        ("/dev/null", "/dev/null is a pipe or a device"),
        ("pointer.txt", "pointer.txt is a Git LFS pointer"),
        (",", "names no file"),
        ("", "names no file"),
        ("a.txt/*", "no such file, folder or glob match"),
        ("org/name", "if it is a dataset of the Hugging Face hub, write hf:org/name"),
        ("https://host/a.txt", "no such file, folder or glob match; download it first"),
        ("a.csv", "a.csv: this kind of file is not read; give .txt"),
    ],
)
def test_a_path_that_cannot_be_data_is_refused_whole(folder, spec, message):
    make(folder, "a.csv a.txt")
    os.mkfifo(folder / "pipe.jsonl")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (folder / "pointer.txt").write_text(pointer)
    with pytest.raises(DataError, match=message) as caught:
        find_files(spec)
    assert "\n" not in str(caught.value)


def test_what_may_not_be_read_is_named(folder, monkeypatch):
    make(folder, "a/b.jsonl")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied"):
        find_files(".")


# --- from the files to the dataset


def clone(folder):
    for split in ("train", "test", "validation"):
        texts = [f"{split} {i}" for i in range(20)]
        pq.write_table(pa.table({"text": texts}), folder / f"{split}-0.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {}}))


def test_a_cloned_dataset_trains_on_its_training_split_alone(folder, tmp_path):
    clone(folder)
    dataset = open_data(DataOptions(data=str(folder)), base=tmp_path / "base")
    assert sorted(dataset.documents("train")) == sorted(f"train {i}" for i in range(20))
    assert list(dataset.documents("val")) == [f"validation {i}" for i in range(20)]


def test_the_share_held_out_is_taken_of_the_training_split(folder, tmp_path):
    clone(folder)
    dataset = open_data(DataOptions(data=".", val_frac=0.3), base=tmp_path / "base")
    texts = [*dataset.documents("train"), *dataset.documents("val")]
    assert sorted(texts) == sorted(f"train {i}" for i in range(20))


def test_validation_text_within_the_folder_is_not_trained_on(folder, tmp_path):
    clone(folder)
    options = DataOptions(data="*.parquet", val_data="test-0.parquet")
    dataset = open_data(options, base=tmp_path / "base")
    assert sorted(dataset.documents("train")) == sorted(f"train {i}" for i in range(20))
    assert list(dataset.documents("val")) == [f"test {i}" for i in range(20)]


def test_validation_text_that_is_trained_on_is_said(folder, tmp_path, caplog):
    make(folder, "a.jsonl b.jsonl")
    open_data(DataOptions(data="a.jsonl,b.jsonl", val_data="b.jsonl"), base=tmp_path / "base")
    assert "--val-data names text that is trained on" in caplog.text and "b.jsonl" in caplog.text
