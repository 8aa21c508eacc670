"""Users' own conversations: the formats of rows, rows that cannot be used, files and the hub."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.conversation_rows import ChatRows
from nanochat.data.tasks import mixtures
from nanochat.data.tasks.chat_formats import conversation_of
from nanochat.data.tasks.custom_json import custom_json
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer import train_char
from nanochat.training.chat_stage import prompt_messages

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
BAD = {"messages": [{"role": "user", "content": "q"}]}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(row):
    """(format, [(role, content or content and weight), ...], fields not used)."""
    kind, conversation, unused = conversation_of(row)
    return kind, [tuple(m.values()) for m in conversation["messages"]], set(unused)


def sharegpt(*texts, **more):
    speakers = ("human", "gpt") * len(texts)
    return {"conversations": [{"from": s, "value": t} for s, t in zip(speakers, texts)], **more}  # noqa: B905


ANSWER = {"role": "assistant", "content": "a"}
QA = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "kind", "messages", "unused"),
    [
        ({**GOOD, "id": 7, "score": 0.5, "tools": "[]"}, "OpenAI", QA, {"score"}),
        ({"system": "S", **GOOD}, "OpenAI", [("system", "S"), *QA], set()),
        ({"conversation": GOOD["messages"]}, "OpenAI", QA, set()),
        ({**GOOD, "chosen": [1], "prompt": "q"}, "OpenAI", QA, {"chosen", "prompt"}),
        (sharegpt("q", "a", model="m"), "ShareGPT", QA, {"model"}),
        (sharegpt("q", "a", system_prompt="S"), "ShareGPT", [("system", "S"), *QA], set()),
        (
            {
                "conversations": [
                    {"from": "system", "value": ""},
                    *sharegpt("q", "a")["conversations"],
                ]
            },
            "ShareGPT",
            [("system", ""), *QA],
            set(),
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "q"},
                    {"from": "chatgpt", "value": "a", "weight": 0},
                    {"from": "user", "value": "r"},
                    {"from": "bot", "value": "b", "weight": 1},
                ]
            },
            "ShareGPT",
            [("user", "q"), ("assistant", "a", 0), ("user", "r"), ("assistant", "b")],
            set(),
        ),
        (
            {
                "conversations": [
                    {"role": "user", "value": "q"},
                    {"from": "gpt", "content": "a", "value": ""},
                ]
            },
            "ShareGPT",
            QA,
            set(),
        ),
        ({"instruction": "q", "input": "", "output": "a", "text": "qa"}, "Alpaca", QA, {"text"}),
        ({"instruction": "q", "output": "a"}, "Alpaca", QA, set()),
        (
            {
                "instruction": "q",
                "input": "i",
                "output": "a",
                "system": "S",
                "history": [["h", "j"]],
            },
            "Alpaca",
            [
                ("system", "S"),
                ("user", "h"),
                ("assistant", "j"),
                ("user", "q\n\ni"),
                ("assistant", "a"),
            ],
            set(),
        ),
        ({"prompt": "q", "completion": "a"}, "prompt/completion", QA, set()),
        (
            {
                "prompt": [*GOOD["messages"], {"role": "user", "content": "r"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            "prompt/completion",
            [("user", "q"), ("assistant", "a", 0), ("user", "r"), ("assistant", "b")],
            set(),
        ),
    ],
)
def test_rows_of_every_usual_format_are_read(row, kind, messages, unused):
    assert said(row) == (kind, messages, unused)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "a preference row (chosen, rejected)"),
        (
            {
                "input": GOOD,
                "preferred_output": [],
                "non_preferred_output": [{"role": "assistant"}],
            },
            "a preference row (non_preferred_output)",
        ),
        (sharegpt("q", chosen={"from": "gpt", "value": "a"}), "a preference row (chosen)"),
        (
            {"prompt": "q", "completion": "a", "label": False},
            "a preference row (label), which says",
        ),
        ({**GOOD, "tools": [{"type": "function"}]}, "\"tools\": [{'type': 'function'}] cannot be"),
        ({**GOOD, "functions": [{}]}, '"functions": [{}] cannot be used'),
        (
            {**GOOD, "images": ["a.png"]},
            "\"images\": ['a.png'] cannot be used; this model reads text only",
        ),
        ({**GOOD, "weight": 0}, '"weight" of a row: 0 cannot be used'),
        ({**GOOD, "system": ["S"]}, "\"system\" must be text, got ['S']"),
        ({"messages": "q"}, "\"messages\" must be a list, got 'q'"),
        ({"messages": []}, "at least one message"),
        (BAD, "no answer to learn from: none follows a user's message and has text"),
        ({"messages": [*BAD["messages"], {"role": "assistant", "content": ""}]}, "no answer to le"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 'needs a message of role "user"'),
        ({"messages": [{"role": "assistant", "content": "a"}, *BAD["messages"]]}, "no answer to"),
        (
            {"messages": [*BAD["messages"], {"role": "assistant", "content": "a", "weight": 0}]},
            "no answer to learn from",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "{}"}]},
            "message 1 has role 'function_call', expected system, developer, user or assistant",
        ),
        ({"instruction": "", "output": "a"}, "message 1 (user) is empty"),
        ({"instruction": "q", "output": None}, '"output" must be text, got None'),
        ({"instruction": "q", "input": 3, "output": "a"}, '"input" must be text, got 3'),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "pairs of texts, got ['x']"),
        (
            {"messages": [*BAD["messages"], {**ANSWER, "train_detail": [{"train": False}]}]},
            """"train_detail": [{'train': False}]; write "weight": 0""",
        ),
        (
            {"messages": [*BAD["messages"], {**ANSWER, "loss_mask": 0}]},
            '"loss_mask": 0; write "weight": 0',
        ),
        ({**GOOD, "label": False}, "a preference row (label)"),
        ({"instruction": "q", "output": "a", "kto_tag": False}, "a preference row (kto_tag)"),
        ({"text": "hi", "role": "prompter"}, "no conversation; keys: 'text', 'role'; known are"),
        ({"text": "once"}, "plain text, not a conversation; it is data for base_train"),
        (
            {"question": "q", "answer": "a"},
            "no conversation; keys: 'question', 'answer'; known are {\"messages\": [...]}, {\"con",
        ),
        ({}, "no conversation; keys: none"),
    ],
)
def test_rows_that_cannot_be_learned_from_say_why(row, error):
    with pytest.raises(DataError) as caught:
        conversation_of(row)
    assert error in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_row_held_before_it_still_holds():
    parts = [{"text": "a", "type": "text"}]
    row = {
        "messages": [
            {"content": "q", "role": "user"},
            {"content": parts, "role": "assistant", "weight": 1},
        ]
    }
    # The share for validation is drawn from this text, so that it must not change.
    assert str(conversation_of(row)[1]) == (
        "{'messages': [{'role': 'user', 'content': 'q'}, "
        "{'role': 'assistant', 'content': [{'text': 'a', 'type': 'text'}]}]}"
    )


def test_a_sample_is_asked_what_the_user_asked_first_after_any_greeting():
    greeting, question = {"role": "assistant", "content": "hi"}, {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": "a"}
    row = {"messages": [greeting, question, answer, question, answer]}
    assert prompt_messages(row) == [greeting, question]


# --- files


def test_files_folders_and_lists_are_read_and_the_log_says_what_was_found(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "chats"
    write_jsonl(folder / "a.JSONL", [GOOD, sharegpt("q", "a")])
    (folder / "b.json").write_text(json.dumps([{"prompt": "q", "completion": "a"}] * 2))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    with pa.output_stream(str(folder / "d.ndjson.zst"), compression="zstd") as file:
        file.write(json.dumps({**GOOD, "topic": "x"}).encode())
    table = pa.Table.from_pylist(
        [
            {**GOOD, "topic": None, "prompt": None, "completion": None},
            {"prompt": "q", "completion": "a"},
        ]
    )
    pq.write_table(table, folder / "e.parquet")
    for spec in (
        str(folder),
        f"{folder}/*",
        ",".join(str(path) for path in sorted(folder.iterdir())),
    ):
        caplog.clear()
        assert custom_json(spec) == [GOOD] * 8
        assert caplog.messages == [
            f"{spec}: 4 rows, OpenAI format; 3 rows, prompt/completion format; "
            "1 rows, ShareGPT format",
            "not used: 'topic' in 1 rows",
        ]


def test_bad_rows_are_counted_and_the_first_ones_shown(tmp_path, caplog):
    path = tmp_path / "chats.jsonl"
    write_jsonl(path, [GOOD] * 4)
    lines = [json.dumps(BAD), "{oops", "[1]", '{"text": "a"}', '{"a": 1' + "0" * 5000 + "}", ""]
    path.write_text(path.read_text() + "\n".join(lines) + "\n" + json.dumps(GOOD))
    shown = [
        "5 of 10 rows cannot be used; repair them, or leave them out with --bad-rows skip: "
        f"{path}, line 5: no answer to learn from: none follows a user's message and has text",
        f"{path}, line 6: not JSON (Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1))",
        f"write one object per line; {path}, line 7: list instead of an object",
        "write one object per line; ...",
    ]
    with pytest.raises(DataError) as caught:
        custom_json(str(path))
    assert str(caught.value) == "; ".join(shown)
    assert custom_json(str(path), bad_rows="skip") == [GOOD] * 5
    assert (
        "5 of 10 rows cannot be used and are left out: " in caplog.text
        and "line 7: list" in caplog.text
    )


def test_answers_of_weight_0_are_context_and_no_target(tmp_path):
    said = ("Q1", "WRONG ANSWER", "Again", "RIGHT ANSWER")
    messages = [{"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, said)]  # noqa: B905
    messages[1]["weight"], messages[3]["weight"] = 0, 1
    path = write_jsonl(tmp_path / "chats.jsonl", [{"messages": messages}] * 3)
    coder = train_char(["".join(map(chr, range(32, 127)))])
    (row,) = ChatRows(custom_json(path)[:1], coder, 80, seed=0).bucket(0, 0).targets
    assert coder.decode(row[row >= 0].tolist()) == "RIGHT ANSWER<|assistant_end|>"


def test_rows_with_the_same_fault_are_told_of_once(tmp_path):
    path = write_jsonl(tmp_path / "chats.jsonl", [{"messages": "q"}] * 4)
    places = ", ".join(f"{path}, line {number}" for number in (1, 2, 3))
    with pytest.raises(DataError) as caught:
        custom_json(path)
    assert str(caught.value) == (
        f"none of 4 rows can be used: {places}: \"messages\" must be a list, got 'q'; ..."
    )


@pytest.mark.parametrize("layout", ["lines", "one line", "array of arrays"])
def test_a_bare_list_of_messages_is_a_conversation(tmp_path, layout):
    rows = [GOOD["messages"]] * (1 if layout == "one line" else 3)
    path = tmp_path / f"chats.json{'l' * (layout == 'lines')}"
    if layout == "array of arrays":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert custom_json(str(path)) == [GOOD] * len(rows)


def test_an_array_in_a_file_of_lines_says_how_to_name_it(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps([GOOD, GOOD]))
    with pytest.raises(DataError, match=r"line 1: a list of objects; .* or name it \.json"):
        custom_json(str(path))
    assert custom_json(str(path.rename(tmp_path / "chats.json"))) == [GOOD] * 2


def test_without_a_row_to_use_there_is_an_error_either_way(tmp_path):
    path = write_jsonl(tmp_path / "chats.jsonl", [BAD, BAD])
    with pytest.raises(DataError, match=r"none of 2 rows .*line 1, .*line 2: no answer"):
        custom_json(path, bad_rows="skip")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl contains no conversations; known are rows"):
        custom_json(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        custom_json(str(tmp_path / "missing.jsonl"))
    (tmp_path / "a.txt").write_text("once")
    with pytest.raises(DataError, match=r"a\.txt: not rows; give \.jsonl"):
        custom_json(str(tmp_path / "a.txt"))


def test_a_hub_dataset_is_read_by_name_config_and_split(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))

    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([GOOD, BAD])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert custom_json("hf:org/chats:test", bad_rows="skip") == [GOOD]
    with pytest.raises(DataError, match=r"1 of 2 rows .* skip: hf:org/chats, row 2: no answer"):
        mixtures.build("hf:org/chats:all:train", stage="sft", val_data="hf:org/chats:test")
    assert asked == [("org/chats", None, "test"), ("org/chats", "all", "train")]
    with pytest.raises(ConfigError, match="--val-data hf:: write hf:ORG/NAME"):
        custom_json("hf:", flag="--val-data")


def test_validation_files_beside_the_data_are_for_validation_and_never_trained_on(tmp_path):
    names = ("train", "validation", "test")
    questions = {name: {"prompt": name, "completion": "a"} for name in names}
    paths = {name: write_jsonl(tmp_path / f"{name}.jsonl", [questions[name]] * 3) for name in names}

    def asked(data, val_data=None):
        parts = mixtures.build(data, stage="sft", val_data=val_data)
        return tuple([row["messages"][0]["content"] for row in part] for part in parts)

    assert asked(str(tmp_path)) == (["train"] * 3, ["validation"] * 3)
    assert asked(f"{tmp_path}/*", paths["test"]) == (["train"] * 3, ["test"] * 3)
    assert asked(f"{tmp_path}/t*.jsonl", paths["train"]) == (["test"] * 3, ["train"] * 3)
    assert asked(paths["train"], paths["train"]) == (["train"] * 3, ["train"] * 3)
