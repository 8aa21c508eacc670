"""The datasets, on small files with the real layout, and on the real data where it exists."""

import doctest
import gzip
import importlib
import json
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from nanochat.data.tasks import common, evaluations, gsm8k, mixtures, spelling
from nanochat.data.tasks.arc import arc
from nanochat.data.tasks.common import Conversations, TaskMixture, find_letter
from nanochat.data.tasks.gsm8k import GSM8K, final_number, solution_parts
from nanochat.data.tasks.humaneval import HumanEval, extract_code, judge, program
from nanochat.data.tasks.identity import identity
from nanochat.data.tasks.mmlu import mmlu
from nanochat.data.tasks.smoltalk import smoltalk
from nanochat.data.tasks.spelling import LetterCounting, simple_spelling
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer import conversation, train_bpe
from nanochat.tools import calculator

SHARED = Path(__file__).parents[2] / "shared" / "data"
WORDS = [a + b + c for a in "bcdfgh" for b in "aeiou" for c in "lmnprst"]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def texts(row):
    return [message["content"] for message in row["messages"]]


# --- multiple choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (C) the sea", "C"),
        ("B) A big dog", "B"),
        ("**D**", "D"),
        ("the river C", "C"),
        ("the river C.", "C"),
        ("The answer is A", "A"),
        ("A dog is option B", "B"),
        ("CAB", None),
        ("I'D say so", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_a_text_names_is_found(text, letter):
    assert find_letter(text, list("ABCD")) == letter


def test_the_letter_of_an_option_is_the_same_token_as_the_answer():
    words = ["red", "green", "blue", "(A) (B) (C)", "- x (A)\n- y (B)\nA B C D"]
    tokenizer = train_bpe([" ".join(words)] * 50, 300)
    question = common.ChoiceQuestion("Which colour?", ("red", "green", "blue"), 2)
    row = common.choice_conversation(question)
    tokens = tokenizer.encode(texts(row)[0])
    for letter in "ABC":
        assert tokenizer.encode(letter)[0] in tokens
    assert texts(row)[1] == "C"


def test_mmlu_reads_flat_rows_and_those_wrapped_once_more(tmp_path):
    row = {"question": "Q?", "subject": "s", "choices": ["w", "x", "y", "z"], "answer": 1}
    write_parquet(tmp_path / "all" / "test.parquet", [row])
    write_jsonl(tmp_path / "auxiliary_train" / "train.jsonl", [{"train": {**row, "answer": 3}}])
    test = mmlu("test", source=str(tmp_path))
    train = mmlu("auxiliary_train", source=str(tmp_path))
    assert texts(test[0])[1] == "B" and texts(train[0])[1] == "D"
    assert "- w (A)\n- x (B)\n- y (C)\n- z (D)\n" in texts(test[0])[0]
    assert test.evaluate(0, "B") and not test.evaluate(0, "A")
    assert test.choices(0) == ["A", "B", "C", "D"]


def test_arc_takes_three_to_five_options_and_labels_that_are_digits(tmp_path):
    rows = [
        {"question": "Q", "choices": {"text": list("wxy"), "label": list("123")}, "answerKey": "3"},
        {
            "question": "Q",
            "choices": {"text": list("vwxyz"), "label": list("ABCDE")},
            "answerKey": "E",
        },
    ]
    write_jsonl(tmp_path / "ARC-Easy" / "test.jsonl", rows)
    task = arc("ARC-Easy", "test", source=str(tmp_path))
    assert [texts(task[i])[1] for i in range(2)] == ["C", "E"]
    assert task.choices(0) == ["A", "B", "C"] and len(task.choices(1)) == 5
    rows[0]["answerKey"] = "9"
    write_jsonl(tmp_path / "ARC-Easy" / "test.jsonl", rows)
    with pytest.raises(DataError, match="answer '9' is not in"):
        arc("ARC-Easy", "test", source=str(tmp_path))[0]


# --- GSM8K


def test_calculator_spans_become_tool_calls_with_the_calculators_own_output():
    parts = solution_parts("Half: 48/2 = <<48/2=24.00>>24 clips.\n#### 24")
    assert parts == [
        {"type": "text", "text": "Half: 48/2 = "},
        {"type": "python", "text": "48/2"},
        {"type": "python_output", "text": "24"},
        {"type": "text", "text": "24 clips.\n#### 24"},
    ]


def test_spans_that_the_calculator_refuses_are_left_out():
    parts = solution_parts("It is 5% <<five*80=4>>4 in all")
    assert parts == [{"type": "text", "text": "It is 5% 4 in all"}]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", 18),
        ("a #### 1 b\n#### $1,234.50", Decimal("1234.50")),
        ("####-7.", -7),
        ("#### 18 #### 20", 20),
        ("#### 72, altogether, 3 of them red", 72),
        ("####\n18.00\n20", 18),
        ("#### about 50% of $100", 50),
        ("#### \u22125", -5),
        ("#### -$5", -5),
        ("#### - 5", -5),
        ("#### 3/4", Fraction(3, 4)),
        ("#### \u2212$3 / 4 of it", Fraction(-3, 4)),
        ("#### .5", Fraction(1, 2)),
        ("####", None),
        ("18", None),
        ("#### no", None),
        ("#### 5/0", None),
        ("#### 10-12", None),
        ("#### 2 1/2", None),
        ("#### 1 000", None),
        ("#### 1e5", None),
        ("#### 18.5.2", None),
        ("#### 3*6 = 18", None),
        ("#### 2\u00b2", None),
        ("#### " + "9" * 5000, None),
    ],
)
def test_the_final_number_is_whole_and_follows_the_last_marks(text, number):
    assert final_number(text) == number


def test_what_docstrings_say_of_final_numbers_holds():
    for name in ("data.tasks.gsm8k", "pocket.evaluation"):
        result = doctest.testmod(importlib.import_module(f"nanochat.{name}"))
        assert (result.failed, result.attempted) == (0, 2 if "gsm8k" in name else 1)


def test_gsm8k_grades_by_number_and_rewards_the_same(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"question": "Q", "answer": "so <<1+1=2>>2\n#### 2"}])
    task = GSM8K("test", source=str(tmp_path))
    assert task.evaluate(0, "#### 2.00") and task.reward(0, "... #### 2") == 1.0
    assert not task.evaluate(0, "2") and task.reward(0, "#### 3") == 0.0


@pytest.mark.skipif(not (SHARED / "gsm8k").exists(), reason="no GSM8K beside the checkout")
def test_every_real_solution_is_right_by_its_own_grader_and_renders():
    tokenizer = train_bpe(["how many 1 2 3 4 5 6 7 8 9 0 + - * / = in all"] * 20, 280)
    for split, size in (("test", 1319), ("train", 7473)):
        task = GSM8K(split, source=str(SHARED / "gsm8k"))
        assert len(task) == size
        calls = 0
        for i in range(len(task)):
            parts = task[i]["messages"][1]["content"]
            assert task.evaluate(i, parts[-1]["text"])
            calls += sum(part["type"] == "python" for part in parts)
            assert not any("<<" in part["text"] for part in parts)
        assert calls > 3 * size
    rendered = conversation.render(task[0], tokenizer)
    assert 0 < sum(rendered.mask) < len(rendered.tokens)


# --- HumanEval


def problem():
    prompt = 'from typing import List\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n'
    return {
        "prompt": prompt,
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
        "entry_point": "double",
    }


def test_code_is_taken_from_a_fence_or_the_full_text():
    assert extract_code("Here:\n```python\nx = 1\n```\nDone") == "x = 1\n"
    assert extract_code("```\nx = 1") == "x = 1"
    assert extract_code("x = 1") == "x = 1"


def test_the_program_has_the_prompt_before_the_code_and_the_judge_the_tests():
    row = problem()
    again = program(row, "def double(x):\n    return 2 * x")
    assert again.index("from typing") < again.index("def double") < again.index("return 2 * x")
    continued = program(row, "    return 2 * x")
    assert continued == row["prompt"] + "    return 2 * x"
    assert "check" not in again + continued
    assert judge(row).index("return 2 * x") < judge(row).index("def check")


def test_humaneval_runs_the_tests(tmp_path):
    path = tmp_path / "HumanEval.jsonl.gz"
    write_jsonl(path, [problem()])
    try:
        assert len(HumanEval(source=str(tmp_path))) == 1  # the folder of the published file
    except ConfigError as error:
        pytest.skip(f"no sandbox here: {error}")
    task = HumanEval(source=str(path))
    assert "Complete this Python function" in texts(task[0])[0]
    assert task.evaluate(0, texts(task[0])[1])
    assert not task.evaluate(0, "```python\ndef double(x):\n    return x\n```")
    assert not task.evaluate(0, "I don't know")
    write_jsonl(path, [problem(), problem() | {"test": None}])
    with pytest.raises(DataError, match=r"problem 2 of .* has no text 'test'"):
        HumanEval(source=str(path))


# --- spelling and identity


def test_spelling_rows_spell_every_letter_after_a_space():
    task = simple_spelling(WORDS, "train", size=50)
    for row in task:
        request, answer = texts(row)
        word, letters = answer.split(":")
        assert word in request
        assert letters == "".join(f" {letter}" for letter in word)


def test_counting_agrees_with_the_calculator_and_grades_itself():
    task = LetterCounting(WORDS, "test", size=60)
    counts = Counter()
    for i, row in enumerate(task):
        parts = row["messages"][1]["content"]
        call, output = parts[1]["text"], parts[2]["text"]
        assert calculator.evaluate(call) == output
        assert task.evaluate(i, parts[-1]["text"]) and task.reward(i, "#### 77") == 0.0
        counts[output] += 1
    assert {"0", "1"} <= set(counts)


def test_no_word_is_in_both_splits_and_other_seeds_give_other_rows():
    train, test = (spelling.split_words(WORDS, split) for split in ("train", "test"))
    assert set(train).isdisjoint(test) and len(train) + len(test) == len(WORDS)
    one, two = (list(simple_spelling(WORDS, "train", size=20, seed=s)) for s in (0, 1))
    assert one != two and one == list(simple_spelling(WORDS, "train", size=20, seed=0))
    with pytest.raises(DataError, match="none of 1 words is in the test split"):
        spelling.split_words(train[:1], "test")


def test_word_lists_are_checked(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("apple\nO'Neil\nApple\npear\n\napple\n", encoding="utf-8")
    assert spelling.load_words(path) == ["apple", "pear"]
    path.write_text("1 2 3", encoding="utf-8")
    with pytest.raises(DataError, match="contains no lowercase words"):
        spelling.load_words(path)
    with pytest.raises(DataError, match="is not a word list"):
        spelling.load_words(tmp_path / "missing.txt")


def test_identity_rows_are_different_valid_and_fixed_by_the_seed():
    rows = list(identity(400))
    assert len({json.dumps(row) for row in rows}) == 400
    assert rows == list(identity(400)) and rows != list(identity(400, seed=1))
    for row in rows:
        conversation.validate(row)
    assert sum("nanochat" in json.dumps(row) for row in rows) > 80
    assert len({texts(row)[-2] for row in rows}) > 150


# --- sources and mixtures


def test_rows_come_from_jsonl_gzip_or_parquet_in_a_folder(tmp_path):
    rows = [{"a": 1}, {"a": 2}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl.gz", rows[:1])
    write_parquet(tmp_path / "main" / "train.parquet", rows[1:])
    assert common.load_rows(str(tmp_path), split="train") == rows
    assert common.load_rows(str(tmp_path), split="test") == rows[:1]
    assert common.load_rows(str(tmp_path), split="train", config="main") == rows[1:]
    with pytest.raises(DataError, match=r"has no dev\.jsonl"):
        common.load_rows(str(tmp_path), split="dev")
    with pytest.raises(DataError, match="is not a folder"):
        common.load_rows(str(tmp_path / "missing"), split="train")


def test_the_hub_is_asked_by_name_config_and_split_and_its_failure_is_one_line(
    monkeypatch, tmp_path
):
    import datasets

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))

    asked = []

    def load(source, config, split):
        asked.append((source, config, split))
        if len(asked) > 1:
            raise ConnectionError("no route\nto host")
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        return datasets.Dataset.from_list([{"messages": messages, "source": "x"}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = smoltalk("train", limit=2)
    assert len(task) == 2 and texts(task[1]) == ["hi", "ho"]
    with pytest.raises(DataError) as caught:
        GSM8K("train")
    assert asked == [("HuggingFaceTB/smol-smoltalk", None, "train"), (gsm8k.HUB, "main", "train")]
    assert "openai/gsm8k:main:train cannot be loaded" in str(caught.value)
    assert "\n" not in str(caught.value) and "--preset pocket" in str(caught.value)


def sequence(name, size):
    return Conversations(name, range(size), lambda i: common.exchange(f"{name}{i}", "x"))


def test_a_mixture_holds_every_row_as_often_as_asked_in_a_fixed_order():
    parts = [sequence("a", 5), (sequence("b", 3), 2), sequence("empty", 0)]
    mixture = TaskMixture(parts, seed=4)
    seen = Counter(texts(row)[0] for row in mixture)
    assert len(mixture) == 11
    assert seen == Counter({**{f"a{i}": 1 for i in range(5)}, **{f"b{i}": 2 for i in range(3)}})
    assert list(mixture) == list(TaskMixture(parts, seed=4))
    assert list(mixture) != list(TaskMixture(parts, seed=5))
    assert mixture[2:4] == [mixture[2], mixture[3]] and mixture[-1] == mixture[10]
    with pytest.raises(IndexError):
        mixture[11]
    with pytest.raises(ConfigError, match="at least once, got 0"):
        TaskMixture([(sequence("a", 5), 0)], seed=1)


def test_the_example_of_a_task_in_the_docstring_works(tmp_path):
    lines = common.__doc__.splitlines()
    code = "\n".join(line[4:] for line in lines if not line or line.startswith("    "))
    scope = dict(vars(common))
    exec(code, scope)
    write_jsonl(tmp_path / "test.jsonl", [{"country": "Peru", "city": "Lima"}])
    task = scope["Capitals"]("test", source=str(tmp_path))
    assert texts(task[0]) == ["What is the capital of Peru?", "Lima"]
    assert (task.name, task.kind, task.choices(0)) == ("Capitals", "generate", [])
    assert task.reward(0, "It is Lima.") == 1.0 and task.reward(0, "Rome") == 0.0


def test_limits_cut_a_sequence_and_its_end_is_known():
    limited = Conversations("a", range(9), lambda i: common.exchange(str(i), "x"), limit=4)
    assert len(limited) == 4 and texts(limited[-1])[0] == "3" and len(limited[1:]) == 3
    with pytest.raises(IndexError):
        limited[4]


def test_the_full_mixtures_hold_what_they_should(monkeypatch):
    def fake(name, size):
        return lambda *args, limit=None, **kwargs: sequence(
            " ".join([name, *args]), size if limit is None else min(size, limit)
        )

    monkeypatch.setattr(mixtures, "smoltalk", fake("smoltalk", 40))
    monkeypatch.setattr(mixtures, "mmlu", fake("mmlu", 30))
    monkeypatch.setattr(mixtures, "arc", fake("arc", 20))
    monkeypatch.setattr(mixtures, "GSM8K", fake("gsm8k", 10))
    monkeypatch.setattr(mixtures, "load_words", lambda: WORDS)
    monkeypatch.setattr(mixtures, "LetterCounting", lambda *a, size, seed: sequence("count", size))
    monkeypatch.setattr(mixtures, "simple_spelling", lambda *a, size, seed: sequence("spell", size))
    train, val = mixtures.build("full", stage="mid")
    assert len(train) == 40 + 30 + 10 + 2 * 1000 + 200_000 + 80_000
    assert len(val) == 40 + 30 + 10
    train, _ = mixtures.build("full", stage="sft")
    assert len(train) == 2 * 20 + 10 + 40 + 1000 + 300 + 300


def test_a_share_of_users_conversations_is_kept_for_validation(tmp_path):
    path = tmp_path / "chats.jsonl"
    write_jsonl(path, [common.exchange(f"q{i}", f"a{i}") for i in range(300)])
    train, val = mixtures.build(str(path), stage="sft")
    assert len(train) + len(val) == 300 and 3 <= len(val) <= 30
    assert {texts(row)[0] for row in train}.isdisjoint(texts(row)[0] for row in val)
    train, named = mixtures.build(str(path), stage="sft", val_data=str(path))
    assert (len(train), len(named)) == (300, 300)
    write_jsonl(path, [common.exchange("q", "a")])
    with pytest.raises(DataError, match="too few conversations"):
        mixtures.build(str(path), stage="sft")
    with pytest.raises(DataError, match="--data nope: no such file, folder or glob match"):
        mixtures.build("nope", stage="sft")
    with pytest.raises(DataError, match="--val-data nope: no such file"):
        mixtures.build(str(path), stage="sft", val_data="nope")


def test_pocket_mixtures_are_finite_and_their_validation_differs():
    train, val = mixtures.build("pocket", stage="sft", count=50, seed=3)
    assert len(train) == 50 and len(val) == mixtures.POCKET_VAL_CONVERSATIONS
    assert train == mixtures.build("pocket", stage="sft", count=50, seed=3)[0]
    assert train[:20] != val[:20]
    for row in [*train, *val]:
        conversation.validate(row)


# --- names of evaluations


def test_tasks_are_opened_by_name_with_a_folder_if_given(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"question": "Q", "answer": "#### 2"}])
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS))
    spec = f"gsm8k={tmp_path}, letter-counting={words}"
    found = evaluations.open_tasks(spec, max_items=None)
    assert [(task.name, len(task)) for task in found] == [("GSM8K", 1), ("LetterCounting", 1000)]
    with pytest.raises(
        ConfigError, match="does not know 'gsm9k'; choose from all, full, pocket, arc-easy"
    ):
        evaluations.open_tasks("gsm9k", max_items=None)
    with pytest.raises(ConfigError, match="names no task"):
        evaluations.open_tasks(" , ", max_items=None)


@pytest.mark.parametrize(
    "spec", ["full={}", "pocket={}", "all={}", "facts={}", "gsm8k=", "gsm8k={},gsm8k={}"]
)
def test_a_folder_that_would_not_be_read_is_refused(tmp_path, spec):
    with pytest.raises(ConfigError, match=r"--tasks .*=.*: one folder can be given to each of arc"):
        evaluations.open_tasks(spec.format(tmp_path, tmp_path), max_items=None)


def test_a_tasks_folder_is_read_whether_named_before_or_after_its_group(tmp_path, monkeypatch):
    opened = []
    for name in evaluations.PUBLIC:
        monkeypatch.setitem(evaluations.PUBLIC, name, lambda source: opened.append(source))
    for spec in ("full,gsm8k={}", "gsm8k={},full"):
        evaluations.open_tasks(spec.format(tmp_path), max_items=None)
    assert opened.count(str(tmp_path)) == 2 and opened.count(None) == 10
