"""CORE scoring against a naive reference: one option, one forward pass at a time."""

import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nanochat.evaluation import core, core_bundle
from nanochat.evaluation.accuracy import Accuracy, mean_centered
from nanochat.evaluation.core import Reader
from nanochat.evaluation.core_bundle import AnswerOption, CoreTask
from nanochat.stages import base_eval
from nanochat.system import distributed
from nanochat.system.errors import ConfigError, DataError
from tests.eval_helpers import FLAGS, make_run
from tests.eval_helpers import result as recorded

REAL_BUNDLE = Path(__file__).parents[2] / "shared" / "data" / "eval_bundle"
VOCAB, BOS = 257, 256


class ByteTokenizer:
    bos_id = BOS

    def encode(self, text):
        return list(text.encode())


class WordTokenizer:
    """Splits like GPT's: a space belongs to the word after it. Ids by first sight."""

    bos_id = 0

    def __init__(self):
        self.ids = {}

    def encode(self, text):
        import re

        pieces = re.findall(r"\s?[^\s]+|\s", text)
        return [self.ids.setdefault(piece, len(self.ids) + 1) for piece in pieces]


class TinyModel(nn.Module):
    """A causal model whose prediction depends on every token before it and on its place."""

    def __init__(self, vocab=VOCAB):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(vocab, 16, generator=generator))
        self.head = nn.Parameter(torch.randn(vocab, 16, generator=generator))
        self.shapes = []

    def hidden(self, tokens):
        self.shapes.append(tuple(tokens.shape))
        x = self.table[tokens]
        steps = torch.arange(1, tokens.shape[1] + 1)[:, None]
        return x + torch.sin(x.cumsum(dim=1) * 0.5) + torch.cos(steps * 0.3)

    def logits(self, hidden):
        return hidden @ self.head.T


def reader(model=None, tokenizer=None, context=4096, batch_tokens=512):
    return Reader(
        model=model or TinyModel(),
        tokenizer=tokenizer or ByteTokenizer(),
        context=context,
        device=torch.device("cpu"),
        batch_tokens=batch_tokens,
    )


def task(kind="multiple_choice", shots=0, delimiter=" ", name="t"):
    return CoreTask(name, Path("unused"), kind, shots, delimiter, 0.25)


def write_bundle(folder, tasks):
    """tasks: name -> (kind, shots, baseline in percent, rows)."""
    lines, table = ["icl_tasks:"], ["Eval Task,Task Category,Random baseline"]
    for name, (kind, shots, baseline, rows) in tasks.items():
        lines += [
            "-",
            f"  label: {name}",
            f"  dataset_uri: some/{name}.jsonl",
            f"  num_fewshot: [{shots}]",
            f"  icl_task_type: {kind}",
            '  continuation_delimiter: "\\nAnswer: "',
        ]
        table.append(f"{name},x,{baseline}")
        path = folder / "eval_data" / "some" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "core.yaml").write_text("\n".join(lines) + "\n")
    (folder / "eval_meta_data.csv").write_text("\n".join(table) + "\n")
    return folder


def small_bundle(folder):
    rng = random.Random(2)

    def word():
        return "".join(rng.choice("abcde ") for _ in range(rng.randint(3, 9))).strip() or "a"

    choice = [
        {"query": word(), "choices": [word() + str(i) for i in range(4)], "gold": rng.randrange(4)}
        for _ in range(13)
    ]
    letters = [
        {"query": word(), "choices": ["A", "B", "C"], "gold": rng.randrange(3)} for _ in range(5)
    ]
    schema = [
        {"context_options": [word(), word() + "x"], "continuation": word(), "gold": 1}
        for _ in range(7)
    ]
    language = [{"context": word() + " ", "continuation": word()} for _ in range(6)]
    return write_bundle(
        folder,
        {
            "choice": ("multiple_choice", 2, 25, choice),
            "letters": ("multiple_choice", 10, 33, letters),
            "schema": ("schema", 0, 50, schema),
            "language": ("language_modeling", 3, 0, language),
        },
    )


ENTRY = {
    "label": "t",
    "dataset_uri": "some/t.jsonl",
    "num_fewshot": [0],
    "icl_task_type": "multiple_choice",
}
ITEM = {"query": "q", "choices": ["a", "b"], "gold": 1}


def bent_bundle(folder, *, entries=(ENTRY,), baseline="25", rows=(ITEM,)):
    """A bundle of one task, as JSON, which is YAML too."""
    write_bundle(folder, {"t": ("multiple_choice", 0, baseline, rows)})
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": list(entries)}))
    return folder


def test_a_whole_bundle_is_read(tmp_path):
    (found,) = core_bundle.read_bundle(bent_bundle(tmp_path))
    assert (found.name, found.shots, found.delimiter, found.baseline) == ("t", 0, " ", 0.25)
    assert core_bundle.read_items(found) == [ITEM]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_fewshot": [-5]}, r"task 't': num_fewshot must be a list such as \[10\], got \[-5\]"),
        ({"num_fewshot": [True]}, r"num_fewshot must be .*, got \[True\]"),
        ({"num_fewshot": [1.5]}, r"num_fewshot must be .*, got \[1.5\]"),
        ({"num_fewshot": []}, r"num_fewshot must be .*, got \[\]"),
        ({"num_fewshot": 10}, "num_fewshot must be .*, got 10"),
        ({"num_fewshot": None}, "num_fewshot must be .*, got None"),
        ({"label": 3}, "label must be text, got 3"),
        ({"label": ["t"]}, "label must be text"),
        ({"label": "a\nb"}, "label must be text"),
        ({"label": "other"}, "eval_meta_data.csv has no row for task 'other'"),
        ({"icl_task_type": ["schema"]}, "icl_task_type must be text"),
        ({"icl_task_type": "essay"}, "task 't' has unknown type 'essay'"),
        ({"continuation_delimiter": 1}, "continuation_delimiter must be text, got 1"),
        ({"dataset_uri": None}, "dataset_uri must be text"),
        ({"dataset_uri": "a\0b"}, "dataset_uri must be text"),
        ({"dataset_uri": "../../../../../etc/passwd"}, "'../.*passwd' leads out of the bundle"),
        ({"dataset_uri": "/etc/passwd"}, "'/etc/passwd' leads out of the bundle"),
        ({"dataset_uri": "some/link.jsonl"}, "'some/link.jsonl' leads out of the bundle"),
        ({"dataset_uri": "some"}, "some: no such file, but core.yaml lists it"),
    ],
)
def test_a_task_that_is_not_one_is_named(tmp_path, change, message):
    folder = bent_bundle(tmp_path / "bundle", entries=[{**ENTRY, **change}])
    (tmp_path / "secret.jsonl").write_text(json.dumps(ITEM))
    (folder / "eval_data" / "some" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match=message) as error:
        core_bundle.read_bundle(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "does not have the layout of a CORE bundle"),
        ("icl_tasks: " + "9" * 5000, "does not have the layout"),
        ("icl_tasks: {a: b}", "does not have the layout of a CORE bundle: no list of tasks"),
        ("icl_tasks: []", "lists no tasks"),
        ("icl_tasks: [[1]]", "label must be text"),
        ("icl_tasks: [null]", "label must be text"),
        ("3", "does not have the layout"),
        ("", "does not have the layout"),
        ("!!python/object/apply:os.getcwd []", "does not have the layout"),
        (json.dumps({"icl_tasks": [ENTRY, ENTRY]}), "lists the task 't' twice"),
    ],
)
def test_a_list_of_tasks_that_is_not_one_is_named(tmp_path, text, message):
    folder = bent_bundle(tmp_path)
    (folder / "core.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        core_bundle.read_bundle(folder)


@pytest.mark.parametrize("baseline", ["100", "-1", "nan", "inf", "", "a quarter", "1e400"])
def test_a_baseline_that_is_no_share_is_named(tmp_path, baseline):
    folder = bent_bundle(tmp_path, baseline=baseline)
    with pytest.raises(DataError, match="task 't': the baseline must be from 0 to below 100"):
        core_bundle.read_bundle(folder)


def test_a_table_without_a_baseline_or_with_a_field_too_long_is_named(tmp_path):
    folder = bent_bundle(tmp_path)
    for content in ("Eval Task\nt\n", "Eval Task,Random baseline\nt," + "9" * 200_000):
        (folder / "eval_meta_data.csv").write_text(content)
        with pytest.raises(DataError, match="does not have the layout"):
            core_bundle.read_bundle(folder)


@pytest.mark.parametrize(
    ("kind", "item", "message"),
    [
        ("multiple_choice", {**ITEM, "gold": 2}, "'gold' must be the number of an option, .*got 2"),
        ("multiple_choice", {**ITEM, "gold": -1}, "'gold' must be"),
        ("multiple_choice", {**ITEM, "gold": True}, "'gold' must be"),
        ("multiple_choice", {**ITEM, "gold": 1.0}, "'gold' must be"),
        ("multiple_choice", {**ITEM, "gold": "b"}, "'gold' must be"),
        (
            "multiple_choice",
            {**ITEM, "choices": ["a", 2]},
            "'choices' must be a list of two or mor",
        ),
        ("multiple_choice", {**ITEM, "choices": ["a"], "gold": 0}, "'choices' must be"),
        ("multiple_choice", {**ITEM, "choices": "ab"}, "'choices' must be"),
        ("multiple_choice", {**ITEM, "choices": None}, "'choices' must be"),
        ("multiple_choice", {**ITEM, "query": 3}, "'query' must be text, got 3"),
        ("multiple_choice", {"query": "q", "choices": ["a", "b"]}, "has no 'gold'"),
        (
            "schema",
            {"context_options": ["a", "b"], "continuation": None, "gold": 0},
            "'continuation' must be text",
        ),
        (
            "schema",
            {"context_options": ["a", "b"], "continuation": "c", "gold": 2},
            "'gold' must be",
        ),
        ("language_modeling", {"context": ["a"], "continuation": "c"}, "'context' must be text"),
    ],
)
def test_an_item_of_another_type_is_named_with_its_line(tmp_path, kind, item, message):
    entry = {**ENTRY, "icl_task_type": kind}
    (found,) = core_bundle.read_bundle(bent_bundle(tmp_path, entries=[entry], rows=[item]))
    with pytest.raises(DataError, match=r"t\.jsonl, line 1.*" + message) as error:
        core_bundle.read_items(found)
    assert "\n" not in str(error.value)


def naive_losses(model, tokens, start):
    """Loss of each token from `start` on, one prediction at a time, without batch or padding."""
    losses, hits = [], []
    for place in range(start, len(tokens)):
        logits = model.logits(model.hidden(torch.tensor([tokens[:place]])))[0, -1]
        losses.append(-torch.log_softmax(logits.double(), dim=0)[tokens[place]].item())
        hits.append(int(logits.argmax()) == tokens[place])
    return losses, hits


def test_choices_follow_query_and_delimiter_and_examples_show_their_right_choice():
    example = {"query": "2+2?", "choices": ["3", "4"], "gold": 1}
    item = {"query": "1+1?", "choices": ["2", "5"], "gold": 0}
    found = core_bundle.prompts(task(delimiter="\nAnswer: "), item, [example, example])
    before = "2+2?\nAnswer: 4\n\n" * 2
    assert found == [before + "1+1?\nAnswer: 2", before + "1+1?\nAnswer: 5"]


def test_schema_prompts_share_the_ending_and_language_prompts_the_beginning():
    item = {"context_options": ["the cat", "the dog"], "continuation": "ran.", "gold": 0}
    assert core_bundle.prompts(task("schema"), item, [item]) == [
        "the cat ran.\n\nthe cat ran.",
        "the cat ran.\n\nthe dog ran.",
    ]
    item = {"context": " The sky is \n", "continuation": "blue"}
    assert core_bundle.prompts(task("language_modeling"), item, [item]) == [
        "The sky is blue\n\nThe sky is",
        "The sky is blue\n\nThe sky is blue",
    ]


def test_the_scored_part_is_what_differs_what_is_shared_or_the_continuation():
    tokenizer = WordTokenizer()
    found = core_bundle.answer_options(task(), ["q a b", "q c"], tokenizer, 99)
    assert [(len(option.tokens), option.start) for option in found] == [(4, 2), (3, 2)]
    found = core_bundle.answer_options(
        task("schema"), ["the cat ran off", "dogs ran off"], tokenizer, 99
    )
    assert [(len(option.tokens), option.start) for option in found] == [(5, 3), (4, 2)]
    found = core_bundle.answer_options(task("language_modeling"), ["x y", "x y z w"], tokenizer, 99)
    assert [(len(option.tokens), option.start) for option in found] == [(5, 3)]


def test_prompts_over_the_context_lose_their_beginning_and_keep_the_bos():
    texts = ["abcdefgh" + "X", "abcdefgh" + "YZ"]
    found = core_bundle.answer_options(task(), texts, ByteTokenizer(), 4)
    assert found[0] == AnswerOption([BOS, *b"fghX"], 4)
    assert found[1] == AnswerOption([BOS, *b"ghYZ"], 3)
    endless = core_bundle.answer_options(
        task("language_modeling"), ["a", "abcdefgh"], ByteTokenizer(), 3
    )
    assert endless == [AnswerOption([BOS, *b"fgh"], 1)]


def test_examples_are_a_fixed_draw_of_the_other_items():
    items = [{"n": n} for n in range(30)]
    for index in (0, 7, 29):
        reference = random.Random(1234 + index).sample([i for i in range(30) if i != index], 5)
        assert [item["n"] for item in core_bundle.fewshot(items, index, 5)] == reference


def test_a_pool_smaller_than_the_number_of_examples_is_used_completely():
    items = [{"n": n} for n in range(4)]
    assert sorted(item["n"] for item in core_bundle.fewshot(items, 1, 10)) == [0, 2, 3]
    assert core_bundle.fewshot(items[:1], 0, 10) == []


@pytest.mark.parametrize("batch_tokens", [1, 512, 100_000])
def test_every_task_type_equals_the_naive_reference(tmp_path, batch_tokens):
    bundle = small_bundle(tmp_path)
    model, tokenizer = TinyModel(), ByteTokenizer()
    log = tmp_path / "items.jsonl"
    found = core.evaluate(
        reader(model, batch_tokens=batch_tokens),
        bundle,
        run=distributed.single_run(),
        items_path=log,
    )
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 13 + 5 + 7 + 6
    for part in core_bundle.read_bundle(bundle):
        items = core_bundle.read_items(part)
        for row in (row for row in rows if row["task"] == part.name):
            index = row["item"]
            texts = core_bundle.prompts(
                part, items[index], core_bundle.fewshot(items, index, part.shots)
            )
            scored = core_bundle.answer_options(part, texts, tokenizer, 4096)
            pairs = [naive_losses(model, option.tokens, option.start) for option in scored]
            if part.kind == "language_modeling":
                assert row["correct"] == all(pairs[0][1])
            else:
                means = [float(np.mean(losses)) for losses, _ in pairs]
                assert row["losses"] == pytest.approx(means, rel=1e-4)
                assert row["correct"] == (int(np.argmin(means)) == items[index]["gold"])
    assert [result.n for result in found] == [13, 5, 7, 6]


def test_bare_letters_share_one_row_of_the_batch():
    items = [{"query": f"q{n}", "choices": ["A", "B", "C", "D"], "gold": 0} for n in range(8)]
    model = TinyModel()
    core.score_items(reader(model, batch_tokens=10_000), task(), items, range(8))
    assert [rows for rows, _ in model.shapes] == [8]


def test_a_model_that_knows_the_answer_is_right_and_centered_accuracy_is_one(tmp_path):
    """After a colon its table predicts exactly '7'."""

    class Knowing(TinyModel):
        def hidden(self, tokens):
            return nn.functional.one_hot(tokens, VOCAB).float()

        def logits(self, hidden):
            sharp = torch.zeros(VOCAB, VOCAB)
            sharp[ord(":"), ord("7")] = 50.0
            return hidden @ sharp

    rows = [{"query": f"n{n}", "choices": ["7", "8"], "gold": 0} for n in range(4)]
    language = [{"context": f"n{n}", "continuation": "7"} for n in range(4)]
    items = {"a": ("multiple_choice", 0, 50, rows), "b": ("language_modeling", 0, 0, language)}
    bundle = write_bundle(tmp_path, items)
    text = (bundle / "core.yaml").read_text().replace("\\nAnswer: ", ":")
    (bundle / "core.yaml").write_text(text)
    found = core.evaluate(reader(Knowing()), bundle, run=distributed.single_run())
    assert [(r.value, r.stderr, r.centered) for r in found] == [(1, 0, 1), (1, 0, 1)]
    assert mean_centered(found) == (1, 0)


def test_item_cap_keeps_the_prompts_of_the_items_that_stay(tmp_path):
    bundle = small_bundle(tmp_path)
    logs = []
    for cap in (None, 3):
        log = tmp_path / f"{cap}.jsonl"
        core.evaluate(reader(), bundle, run=distributed.single_run(), max_items=cap, items_path=log)
        logs.append([json.loads(line) for line in log.read_text().splitlines()])
    assert len(logs[1]) == 12
    assert all(row in logs[0] for row in logs[1])


def test_ranks_score_each_item_once_and_agree_on_the_result(tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path)
    one = distributed.single_run()
    expected = core.evaluate(reader(), bundle, run=one)
    shares = {rank: [] for rank in range(3)}

    def run(rank):
        return distributed.Run(**{**one.__dict__, "rank": rank, "world_size": 3})

    for rank in shares:
        keep = shares[rank]
        monkeypatch.setattr(
            distributed,
            "gather_objects",
            lambda run, value, keep=keep: keep.append(value) or [value],
        )
        core.evaluate(reader(), bundle, run=run(rank), max_items=3)
    assert [len(part) for part, _ in shares[1]] == [1, 1, 1, 1]
    full = {rank: [] for rank in range(3)}
    for rank in full:
        keep = full[rank]
        monkeypatch.setattr(
            distributed,
            "gather_objects",
            lambda run, value, keep=keep: keep.append(value) or [value],
        )
        core.evaluate(reader(), bundle, run=run(rank))
    turns = iter(range(4))

    def all_parts(run, value):
        turn = next(turns)
        return [full[rank][turn] for rank in range(3)]

    monkeypatch.setattr(distributed, "gather_objects", all_parts)
    assert core.evaluate(reader(), bundle, run=run(0)) == expected


def result(name, accuracy, n, baseline):
    stderr = (accuracy * (1 - accuracy) / n) ** 0.5
    return Accuracy(name, accuracy, stderr, n, baseline)


def test_centered_mean_and_its_standard_error():
    results = [result("a", 0.5, 100, 0.0), result("b", 0.75, 400, 0.5)]
    mean, stderr = mean_centered(results)
    assert mean == pytest.approx((0.5 + 0.5) / 2)
    one, two = 0.05, (0.75 * 0.25 / 400) ** 0.5 / 0.5
    assert stderr == pytest.approx((one**2 + two**2) ** 0.5 / 2)


def test_only_all_tasks_of_core_are_called_core():
    names = sorted(core.CORE_TASKS)
    assert len(names) == 22
    complete = [result(name, 0.5, 10, 0.0) for name in names]
    assert core.label(complete, max_items=None) == "CORE"
    assert core.label(complete, max_items=50) == "CORE, at most 50 items each"
    assert (
        core.label(complete[:18], max_items=None)
        == "mean centred accuracy over 18 of 22 CORE tasks"
    )
    other = [result("pocket_facts", 0.5, 10, 0.0)]
    assert "not CORE" in core.label(other, max_items=None)


def test_a_bundle_that_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match=r"core\.yaml: no such file"):
        core_bundle.read_bundle(tmp_path)
    bundle = small_bundle(tmp_path)
    path = bundle / "eval_data" / "some" / "schema.jsonl"
    path.write_text('{"context_options": [], "gold": 0}\n')
    (schema,) = (t for t in core_bundle.read_bundle(bundle) if t.name == "schema")
    with pytest.raises(DataError, match=r"schema\.jsonl, line 1 has no 'continuation'"):
        core_bundle.read_items(schema)
    path.write_text("")
    with pytest.raises(DataError, match="has no items"):
        core_bundle.read_items(schema)
    path.unlink()
    with pytest.raises(DataError, match=r"schema\.jsonl: no such file"):
        core_bundle.read_bundle(bundle)
    (bundle / "core.yaml").write_text("icl_tasks: 3\n")
    with pytest.raises(DataError, match="does not have the layout of a CORE bundle"):
        core_bundle.read_bundle(bundle)


@pytest.mark.skipif(not REAL_BUNDLE.exists(), reason="no evaluation bundle beside the checkout")
def test_the_real_bundle_is_read_and_scored_in_all_its_tasks():
    found = core.evaluate(
        reader(context=256, batch_tokens=8192),
        REAL_BUNDLE,
        run=distributed.single_run(),
        max_items=2,
    )
    assert len(found) == 18
    assert {r.name for r in found} < core.CORE_TASKS
    assert all(r.n == 2 for r in found)
    by_name = {r.name: r for r in found}
    assert by_name["boolq"].baseline == 0.62
    tasks = {task.name: task for task in core_bundle.read_bundle(REAL_BUNDLE)}
    assert tasks["jeopardy"].shots == 10


def test_the_stage_records_centered_accuracies_and_does_not_call_them_core(tmp_path, monkeypatch):
    run = make_run(tmp_path, monkeypatch)
    bundle = small_bundle(tmp_path / "bundle")
    base_eval.main([*FLAGS, "--bundle", str(bundle), "--max-items", "4"])
    found = recorded(run, "base_eval")["results"]
    assert found[0]["name"] == (
        "mean centred accuracy over 4 tasks (not CORE), at most 4 items each"
    )
    assert [row["name"] for row in found[1:]] == ["choice", "letters", "schema", "language"]
    for row in found[1:]:
        assert row["unit"] == "centred accuracy" and row["n"] == 4
        centered = (row["accuracy"] - row["baseline"]) / (1 - row["baseline"])
        assert row["value"] == pytest.approx(centered)
    assert found[0]["value"] == pytest.approx(np.mean([row["value"] for row in found[1:]]))
    assert len((run / "base_eval" / "items.jsonl").read_text().splitlines()) == 16
    with pytest.raises(ConfigError, match="got 'nowhere'"):
        base_eval.main([*FLAGS, "--bundle", "nowhere"])


def test_the_public_bundle_is_unpacked_completely_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    small_bundle(tmp_path / "eval_bundle")

    def fetch(url, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "eval_bundle").rglob("*"):
                archive.write(file, file.relative_to(tmp_path))

    monkeypatch.setattr(base_eval.downloads, "fetch", fetch)
    folder = base_eval.open_bundle("core", distributed.single_run())
    assert len(core_bundle.read_bundle(folder)) == 4
    assert base_eval.open_bundle("core", distributed.single_run()) == folder

    def broken(url, path):
        path.write_bytes(b"PK no archive")

    monkeypatch.setattr(base_eval.downloads, "fetch", broken)
    with pytest.raises(DataError, match="was damaged"):
        base_eval.fetch_core(tmp_path / "base" / "data" / "other")
    assert not (tmp_path / "base" / "data" / "other").exists()
    assert not (tmp_path / "base" / "data" / "other.zip").exists()
