"""Rows and text from every layout of JSON, parquet and plain text, or one line of what is wrong."""

import gzip
import json
import logging
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data import DataOptions, hub, open_data
from nanochat.data.file_formats import parquet_texts, read_rows
from nanochat.data.text_decoding import TextReading
from nanochat.data.text_files import CHUNK_BYTES, read_documents
from nanochat.system.errors import ConfigError, DataError


def texts_of(path, **options):
    return list(read_documents([path], TextReading(**options)))


def write_json(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


# --- rows

ROWS = [{"text": "a\n", "n": 1}, {"text": "b", "more": {"x": [None, {"y": "z"}]}}, {"n": 3.5}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("a.NDJSON", "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("array.json", json.dumps(ROWS)),
        ("indented.JSON", "\n" + json.dumps(ROWS, indent=2)),
        ("objects.json", "\n".join(json.dumps(row, indent=2) for row in ROWS) + "\n"),
    ],
)
def test_rows_are_read_from_every_layout_of_json(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    with pa.output_stream(str(tmp_path / f"{name}.zst"), compression="zstd") as file:
        file.write(content.encode())
    for path in (tmp_path / name, packed, tmp_path / f"{name}.zst"):
        assert [row for _, row in read_rows(path)] == ROWS
        assert all(str(path) in place for place, _ in read_rows(path))


def test_rows_of_parquet_are_without_null_fields(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "b", "weight": 0}]
    table = pa.table({"messages": [messages, None], "id": [b"x", None], "prompt": [None, "c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [
        (f"{tmp_path}/a.parquet, row 1", {"messages": messages, "id": "x"}),
        (f"{tmp_path}/a.parquet, row 2", {"prompt": "c"}),
    ]


def test_plain_text_has_no_rows(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"a\.txt: not rows"):
        list(read_rows(tmp_path / "a.txt"))


# --- text in parquet

TYPES = [
    *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    pa.dictionary(pa.int16(), pa.binary()),
]
for view in ("string_view", "binary_view"):
    try:
        pq.write_table(
            pa.table({"x": pa.array(["a"], getattr(pa, view)())}), pa.BufferOutputStream()
        )
        TYPES.append(getattr(pa, view)())
    except (AttributeError, pa.ArrowException):
        pass  # this version of Arrow cannot write them
if hasattr(pa, "json_"):
    TYPES.append(pa.json_())


def as_type(texts, kind):
    if pa.types.is_dictionary(kind):
        return pa.array(texts, kind.value_type).dictionary_encode().cast(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(texts, kind.storage_type))
    return pa.array(texts, pa.string()).cast(kind)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_arrow_layout_of_text_reads_as_the_plain_list(tmp_path_factory, data):
    draw = data.draw
    text = st.text(max_size=6).filter(str.strip)
    kind = draw(st.sampled_from(TYPES))
    chunks = draw(st.lists(st.lists(st.none() | text, max_size=5), min_size=1, max_size=4))
    arrays = []
    for chunk in chunks:
        padded = as_type([*chunk, None, "x"], kind)
        cut = draw(st.integers(0, len(chunk)))
        arrays.append(padded[cut : len(chunk)])  # an array with an offset
    expected = [value for array in arrays for value in array.cast(pa.string()).to_pylist()]
    column = pa.chunked_array(arrays, type=kind)
    path = tmp_path_factory.getbasetemp() / "layout.parquet"
    pq.write_table(
        pa.table({"id": range(len(column)), "text": column}),
        path,
        row_group_size=draw(st.integers(1, 8)),
        compression=draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])),
        use_dictionary=draw(st.booleans()),
        store_schema=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
    )
    assert list(parquet_texts(path, TextReading())) == [value or "" for value in expected]
    assert [row.get("text") for _, row in read_rows(path)] == expected


def test_rows_without_text_take_their_content(tmp_path):
    nulls = pa.array([None] * 3, pa.string())
    full = ["a", "b", "c"]
    for text in (nulls, pa.nulls(3), pa.array([None, "B", None])):
        path = write_parquet(tmp_path / "a.parquet", text=text, content=full)
        expected = [new or old for new, old in zip(text.to_pylist(), full, strict=True)]
        assert texts_of(path) == expected
        rows = [
            {"text": new, "content": old} for new, old in zip(text.to_pylist(), full, strict=True)
        ]
        assert texts_of(write_json(tmp_path / "a.jsonl", *rows)) == expected
    assert texts_of(write_parquet(tmp_path / "b.parquet", content=full)) == full
    assert texts_of(write_parquet(tmp_path / "c.parquet", text=nulls)) == []


def test_a_column_of_text_is_preferred_to_one_of_numbers(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=[1, 2], content=["a", "b"])
    assert texts_of(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([["a"], ["b"]]), r"column 'text' has type list<.*string>, not text"),
        (pa.array([{"a": "b"}]), r"column 'text' has type struct<a: string>, not text"),
        (pa.array([1.5]), "column 'text' has type double, not text"),
        (
            pa.array([1]).dictionary_encode(),
            "column 'text' has type (dictionary|int64).*, not text",
        ),
    ],
)
def test_a_column_of_something_else_is_refused_by_name(tmp_path, column, message):
    with pytest.raises(DataError, match=message):
        texts_of(write_parquet(tmp_path / "a.parquet", text=column))


def test_bytes_that_are_not_utf8_name_their_row(tmp_path):
    for kind in (
        pa.binary(),
        pa.large_binary(),
        pa.binary(3),
        pa.dictionary(pa.int8(), pa.binary()),
    ):
        values = pa.array([b"ok.", b"\xff\xfe."], pa.binary())
        column = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
        path = write_parquet(tmp_path / "a.parquet", text=column)
        with pytest.raises(DataError, match=r"a\.parquet, row 2, byte 0: not UTF-8"):
            texts_of(path)
        assert texts_of(path, replace_invalid=True) == ["ok.", "\ufffd\ufffd."]


def test_odd_tables_are_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, path)
    assert texts_of(path) == ["a"]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert texts_of(path) == []
    pq.write_table(pa.table({"messages": [[{"role": "user"}]]}), path)
    with pytest.raises(DataError, match="a conversation, not text; it is data for chat_sft"):
        texts_of(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged or cut short"):
        texts_of(path)


# --- --text-column


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_column_of_the_text_can_be_named(tmp_path, suffix):
    rows = [{"text": "not this", "a.b": f"row {i}", "n": 1} for i in range(30)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_json(path, *rows)
    assert texts_of(path, column="a.b") == [row["a.b"] for row in rows]
    with pytest.raises(
        DataError, match=r"no column 'body'; columns: text, a\.b, n;.*--text-column"
    ):
        texts_of(path, column="body")
    with pytest.raises(DataError, match=r"'n' (holds int|has type int64), not text"):
        texts_of(path, column="n")
    plain = open_data(DataOptions(data=str(path)), base=tmp_path / "base")
    named = open_data(DataOptions(data=str(path), text_column="a.b"), base=tmp_path / "base")
    assert named.folder != plain.folder
    assert sorted(text for split in ("train", "val") for text in named.documents(split)) == sorted(
        row["a.b"] for row in rows
    )


def test_a_dataset_with_a_column_of_its_own_takes_no_other(tmp_path):
    with pytest.raises(ConfigError, match="--text-column does not go with --data pocket"):
        open_data(DataOptions(text_column="body"), base=tmp_path)


def test_plain_text_has_no_column_to_name(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 100)
    with pytest.raises(ConfigError, match=r"--text-column body: .*a\.txt is plain text"):
        open_data(DataOptions(data=str(tmp_path), text_column="body"), base=tmp_path / "base")


def test_rows_of_the_hub_are_read_like_those_of_files(monkeypatch):
    rows = [{"text": None, "content": "a"}, {"text": b"b\xc3\xa9"}, {"text": None}]
    monkeypatch.setattr(hub, "read_rows", lambda source: ((f"row {r}", r) for r in rows))
    reading = TextReading()
    assert list(hub.hub_documents(hub.parse_name("hf:a/b"), reading)) == ["a", "b\u00e9"]
    assert reading.empty == 1
    with pytest.raises(DataError, match="no column 'body'; columns: text, content"):
        list(hub.hub_documents(hub.parse_name("hf:a/b"), TextReading(column="body")))


# --- plain text

PARAGRAPHS = [f"Paragraph {i}.\nIt was a l\u00f8ng day.\n\n" for i in range(1500)]


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_text_is_cut_alike_with_every_line_end(tmp_path, caplog, line_end):
    text = "".join(PARAGRAPHS)
    (tmp_path / "lf.txt").write_bytes(text.encode())
    (tmp_path / "cr.txt").write_bytes(text.replace("\n", line_end).encode())
    expected = texts_of(tmp_path / "lf.txt")
    assert texts_of(tmp_path / "cr.txt") == expected
    assert all(document.endswith("\n\n") for document in expected)
    with caplog.at_level(logging.INFO):
        open_data(DataOptions(data=str(tmp_path / "cr.txt")), base=tmp_path / "base")
        open_data(DataOptions(data=str(tmp_path / "lf.txt")), base=tmp_path / "base")
    assert caplog.text.count("line ends of 1 text files as LF") == 1


def test_text_prepared_before_line_ends_were_changed_is_prepared_anew(tmp_path):
    def recipe(path):
        dataset = open_data(DataOptions(data=str(path)), base=tmp_path / "base")
        return json.loads((dataset.folder / "manifest.json").read_text())["recipe"]

    before = {"source", "val_source", "invalid_utf8"}
    rows = write_json(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    assert set(recipe(rows)) == before, "rows prepared earlier are used again"
    (tmp_path / "a.txt").write_bytes(b"words\r\n\r\n" * 1000)
    assert set(recipe(tmp_path / "a.txt")) == {*before, "newlines"}


def test_line_ends_are_found_across_the_border_of_a_chunk(tmp_path):
    path = tmp_path / "a.txt"
    for before in (CHUNK_BYTES - 1, CHUNK_BYTES - 2):
        path.write_bytes(b"\xef\xbb\xbf" + b"x" * (before - 3) + b"\r\ny\rz\r")
        assert "".join(texts_of(path)) == "x" * (before - 3) + "\ny\nz\n"
        bad = b"\xef\xbb\xbf" + b"x" * (before - 4) + b"\r" + b"\r\ny\xff"
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"line 3, byte {len(bad) - 1}: not UTF-8"):
            texts_of(path)


def test_line_ends_within_rows_are_left_alone(tmp_path):
    path = write_json(tmp_path / "a.jsonl", {"text": "a\r\nb\r"})
    assert texts_of(path) == ["a\r\nb\r"]
    assert texts_of(write_parquet(tmp_path / "a.parquet", text=["a\r\nb"])) == ["a\r\nb"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_wide_encodings_are_named_also_where_bytes_would_be_replaced(tmp_path, encoding):
    refused = (
        r"a\.\w+: not UTF-8; it looks like UTF-(16|32): convert it \(iconv -f utf-.. -t utf-8\)$"
    )
    for name, text in (("a.txt", "Some words.\n"), ("a.jsonl", '{"text": "a"}\n')):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        for replace in (False, True):
            with pytest.raises(DataError, match=refused):
                texts_of(path, replace_invalid=replace)
    with pytest.raises(DataError, match=refused):
        list(read_rows(path, bad=print))  # the file is at fault, not some of its rows


def test_rows_of_other_formats_are_named_and_only_text_may_be_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"PAR1\x15\x04\x15")
    with pytest.raises(DataError, match=r"it looks like parquet: end its name in \.parquet"):
        list(read_rows(path))
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"line 1, byte 13: not UTF-8; .* or give --invalid-utf8"):
        texts_of(path)
    with pytest.raises(DataError, match=r"not UTF-8; convert .* -t utf-8\)$"):
        list(read_rows(path))


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
def test_conversations_are_no_text(tmp_path, key):
    path = write_json(tmp_path / "a.jsonl", {key: []})
    with pytest.raises(DataError, match="a conversation, not text; it is data for chat_sft"):
        texts_of(path)


@pytest.mark.parametrize(
    ("name", "head", "format_"),
    [
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip: end its name in .gz"),
        ("a.txt", gzip.compress(b"words", mtime=0), "gzip: end its name in .gz"),
        ("a.txt", b"PAR1" + b"a" * 99, "parquet: end its name in .parquet"),
        ("a.json", b"PK\3\4\xff", "a zip archive: unpack it"),
        ("a.md", bytes(99), "UTF-16"),
    ],
)
def test_a_file_of_another_format_is_named_as_such(tmp_path, name, head, format_):
    (tmp_path / name).write_bytes(head)
    with pytest.raises(DataError, match=f"{name}.*not UTF-8; it looks like {format_}"):
        texts_of(tmp_path / name)


def test_a_null_text_beside_something_else_is_empty_in_every_format(tmp_path):
    rows = [{"text": None, "content": {"x": 1}}, {"text": "b", "content": {"x": 2}}]
    assert texts_of(write_json(tmp_path / "a.jsonl", *rows)) == ["b"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == ["b"]


def test_a_file_that_became_shorter_while_it_was_read_is_refused(tmp_path):
    path = write_json(tmp_path / "a.jsonl", *({"text": f"{i}"} for i in range(9)))
    documents = read_documents([path], TextReading())
    next(documents)
    os.truncate(path, 5)
    with pytest.raises(DataError, match=r"a\.jsonl became shorter while it was read"):
        list(documents)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "jsonl.gz", "jsonl.zst"])
def test_a_damaged_file_is_read_or_named_in_one_line(tmp_path, suffix):
    rows = [{"text": f"row {i} \u00e9", "more": [{"n": None}]} for i in range(20)]
    path, rng = tmp_path / f"a.{suffix}", random.Random(4)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with pa.output_stream(str(path), compression="detect") as file:
            file.write(json.dumps(rows).encode() if suffix == "json" else lines)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 9])):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 3])] = rng.choice([b"", b"\0", b"\xff", b"[[", b'"'])
        path.write_bytes(data)
        for read in (texts_of, lambda path: list(read_rows(path))):
            try:
                read(path)
            except DataError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 20


def test_numbers_that_are_none_and_keys_given_twice_do_not_stop_the_reading(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "loss": NaN, "x": -Infinity}\n{"text": "b", "text": "\\u0000c"}\n'
    )
    assert texts_of(path) == ["a", "\0c"]
