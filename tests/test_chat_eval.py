"""Chat evaluation: written answers, letters, standard errors and paired gains."""

import dataclasses
import itertools
import weakref

import pytest
import torch

from nanochat import checkpoint_manager
from nanochat.data.tasks.common import ChoiceQuestion, ChoiceTask
from nanochat.engine import Engine
from nanochat.evaluation import chat
from nanochat.evaluation.accuracy import Accuracy, paired_gain
from nanochat.gpt import GPT, GPTConfig
from nanochat.report import data
from nanochat.stages import chat_eval as chat_eval_script
from nanochat.system import distributed
from nanochat.system.errors import CheckpointError, ConfigError
from nanochat.tokenizer import train_char
from nanochat.tokenizer.conversation import render_prompt
from tests.eval_helpers import FLAGS, make_run, result

LETTERS = "ABCD"


class FakeCompletion:
    def __init__(self, text):
        self.text = text
        self.parts = [{"type": "text", "text": text}] if text else []


class FakeEngine:
    """Answers each prompt through a function of its text."""

    def __init__(self, tokenizer, answer):
        self.tokenizer = tokenizer
        self.answer = answer
        self.requests = []
        self.max_len = 200

    def generate(self, requests):
        self.requests += requests
        return [FakeCompletion(self.answer(self.tokenizer.decode(r.prompt))) for r in requests]


class Doubling:
    """What is twice n?"""

    name, kind = "doubling", "generate"

    def __init__(self, size=20):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return {
            "messages": [
                {"role": "user", "content": f"twice {i}"},
                {"role": "assistant", "content": str(2 * i)},
            ]
        }

    def evaluate(self, i, text):
        return text == str(2 * i)

    def choices(self, i):
        return []


@pytest.fixture(scope="module")
def tokenizer():
    return train_char(["abcdefghijklmnopqrstuvwxyz ABCD 0123456789 ()-.,?\n" * 3])


def choice_task(size=9):
    rows = [{"q": f"question {i}", "n": 3 + i % 3, "gold": i % 3} for i in range(size)]

    def read(row):
        return ChoiceQuestion(row["q"], tuple("wxyz0"[: row["n"]]), row["gold"])

    return ChoiceTask("choosing", rows, read)


def choosing_task_of_four(size=9):
    def read(row):
        return ChoiceQuestion(f"question {row}", ("w", "x", "y", "z"), row % 4)

    return ChoiceTask("choosing", list(range(size)), read)


def tiny_engine(tokenizer, seed=0):
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, sequence_length=256, depth=2, width=32, heads=2
    )
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(0.2 * noise)
    return Engine(model, tokenizer, slots=4)


def test_written_answers_are_asked_greedily_and_graded_item_by_item(tokenizer):
    def answer(prompt):
        number = int("".join(c for c in prompt if c.isdigit()))
        return str(2 * number) if number % 4 else "no idea"

    engine = FakeEngine(tokenizer, answer)
    found = chat.evaluate(engine, Doubling(), run=distributed.single_run())
    assert found.accuracy == Accuracy("doubling", 0.75, (0.75 * 0.25 / 20) ** 0.5, 20, 0.0)
    assert found.rows[4] == {"task": "doubling", "item": 4, "correct": False, "text": "no idea"}
    assert all(r.params.temperature == 0 and r.tools and r.chat for r in engine.requests)
    prompt = render_prompt(Doubling()[3]["messages"][:1], tokenizer)
    assert engine.requests[3].prompt == prompt


def test_a_capped_evaluation_draws_the_same_items_for_every_model(tokenizer):
    engine = FakeEngine(tokenizer, lambda prompt: "x")
    runs = [
        chat.evaluate(engine, Doubling(1000), run=distributed.single_run(), max_items=30)
        for _ in range(2)
    ]
    items = [[row["item"] for row in run.rows] for run in runs]
    assert items[0] == items[1] and len(set(items[0])) == 30
    assert max(items[0]) > 500
    assert chat.draw_items(5, 10) == [0, 1, 2, 3, 4]


def test_letters_are_chosen_as_by_one_forward_pass_for_each_prompt(tokenizer):
    engine, task = tiny_engine(tokenizer), choice_task()
    found = chat.preferred_letters(engine, task, range(len(task)))
    for i, letter in enumerate(found):
        prompt = render_prompt(task[i]["messages"][:-1], tokenizer)
        logits = engine.model(torch.tensor([prompt]))[0, -1]
        letters = task.choices(i)
        values = [logits[tokenizer.encode(c)[0]].item() for c in letters]
        assert letter == letters[values.index(max(values))]
    assert len(set(found)) > 1


def test_letter_mode_reports_against_a_baseline_of_a_quarter(tokenizer):
    engine, task = tiny_engine(tokenizer), choosing_task_of_four()
    found = chat.evaluate(engine, task, run=distributed.single_run(), mode="letters")
    right = [row["text"] == LETTERS[row["item"] % 4] for row in found.rows]
    assert found.accuracy.value == pytest.approx(sum(right) / 9)
    assert found.accuracy.baseline == 0.25


def test_a_task_without_letters_cannot_be_asked_for_them(tokenizer):
    with pytest.raises(ConfigError, match="doubling is answered in free text"):
        chat.preferred_letters(FakeEngine(tokenizer, str), Doubling(), [0])


def test_a_real_engine_answers_a_complete_task(tokenizer):
    found = chat.evaluate(
        tiny_engine(tokenizer), choice_task(), run=distributed.single_run(), max_new_tokens=4
    )
    assert found.accuracy.n == 9
    assert all(isinstance(row["text"], str) for row in found.rows)


def test_ranks_share_the_items(tokenizer, monkeypatch):
    engine = FakeEngine(tokenizer, lambda prompt: "x")
    parts = []
    monkeypatch.setattr(
        distributed, "gather_objects", lambda run, value: parts.append(value[0]) or [value]
    )
    one = distributed.single_run()
    for rank in range(3):
        run = dataclasses.replace(one, rank=rank, world_size=3)
        chat.evaluate(engine, Doubling(10), run=run)
    assert [[row["item"] for row in part] for part in parts] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_paired_gain_is_the_mean_difference_and_narrower_than_two_separate_errors():
    before = [True] * 60 + [False] * 40
    after = [True] * 58 + [False] * 2 + [True] * 20 + [False] * 20
    gain = paired_gain(before, after)
    assert (gain.value, gain.n) == (pytest.approx(0.18), 100)
    differences = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    spread = torch.tensor(differences, dtype=torch.float64).std().item() / 10
    assert gain.stderr == pytest.approx(spread)
    assert gain.significant
    assert gain.stderr < (0.6 * 0.4 / 100 + 0.78 * 0.22 / 100) ** 0.5
    with pytest.raises(ConfigError, match="same two or more items"):
        paired_gain([True], [True, False])


def test_no_difference_is_no_gain():
    gain = paired_gain([True, False], [True, False])
    assert (gain.value, gain.stderr, gain.significant) == (0, 0, False)


def test_chat_core_is_the_mean_centered_accuracy_of_its_six_tasks_only():
    values = dict(zip(chat.CHAT_CORE_TASKS, (0.4, 0.3, 0.35, 0.1, 0.05, 0.9), strict=True))
    found = [
        Accuracy(name, value, 0.01, 100, 0.25 if name[:3] in ("ARC", "MML") else 0.0)
        for name, value in values.items()
    ]
    mean, stderr = chat.chat_core(found)
    expected = [0.15 / 0.75, 0.05 / 0.75, 0.1 / 0.75, 0.1, 0.05, 0.9]
    assert mean == pytest.approx(sum(expected) / 6)
    wide, plain = 0.01 / 0.75, 0.01
    assert stderr == pytest.approx((3 * wide**2 + 3 * plain**2) ** 0.5 / 6)
    for fewer in itertools.combinations(found, 5):
        assert chat.chat_core(fewer) is None


def test_dialogues_remember_what_was_said_and_end_with_their_scripts(tokenizer):
    engine = FakeEngine(tokenizer, lambda prompt: str(prompt.count("|user_start|")))
    dialogues = chat.hold_dialogues(engine, [["hi", "and", "bye"], ["one"]])
    assert [turn["text"] for turn in dialogues[0]["turns"]] == ["hi", "1", "and", "2", "bye", "3"]
    assert dialogues[1]["turns"] == [
        {"role": "user", "text": "one"},
        {"role": "assistant", "text": "1"},
    ]
    silent = FakeEngine(tokenizer, lambda prompt: "")
    (dialogue,) = chat.hold_dialogues(silent, [["hi", "bye"]])
    assert [turn["text"] for turn in dialogue["turns"]] == ["hi", "", "bye", ""]


def test_prompts_are_answered_in_order(tokenizer):
    engine = FakeEngine(tokenizer, lambda prompt: "yes" if "b" in prompt.split("|")[4] else "no")
    found = chat.answer_prompts(engine, ["aaa", "bbb"])
    assert [sample["prompt"] for sample in found] == ["aaa", "bbb"]


def test_the_stage_compares_the_stages_of_a_run_item_by_item(tmp_path, monkeypatch):
    run = make_run(tmp_path, monkeypatch, ("chat_sft", "chat_rl"))
    words = tmp_path / "words.txt"
    words.write_text("\n".join(a + b + c for a in "bcdfgh" for b in "aeiou" for c in "lmnprst"))
    spec = f"letter-counting={words},choice_letter"
    args = ["--max-items", "6", "--max-new-tokens", "4", "--slots", "4", "--write-choices"]
    chat_eval_script.main([*FLAGS, "--tasks", spec, *args])
    found = result(run, "chat_eval")["results"]
    accuracies = [row for row in found if row["unit"] == "accuracy"]
    assert [(row["stage"], row["name"]) for row in accuracies] == [
        (stage, name)
        for stage in ("chat_sft", "chat_rl")
        for name in ("LetterCounting", "choice_letter", "choice_letter, written")
    ]
    assert all(row["n"] == 6 and 0 <= row["value"] <= 1 for row in accuracies)
    gains = [row for row in found if row["unit"] == "points"]
    assert [row["name"].split(":")[0] for row in gains] == [
        "LetterCounting",
        "choice_letter",
        "choice_letter, written",
    ]
    rows = (run / "chat_eval" / "items-chat_rl.jsonl").read_text().splitlines()
    assert len(rows) == 18
    table = data.accuracies(data.load(run))
    assert data.series_of(table) == ["sft", "rl"]


def test_one_model_is_in_memory_at_a_time(tmp_path, monkeypatch):
    make_run(tmp_path, monkeypatch, ("mid_train", "chat_sft", "chat_rl"))
    models: weakref.WeakSet[GPT] = weakref.WeakSet()
    engines: weakref.WeakSet[Engine] = weakref.WeakSet()
    load, build, ask = checkpoint_manager.load, Engine.__init__, chat.evaluate
    found = []

    def noted_load(*args, **options):
        assert not engines
        loaded = load(*args, **options)
        models.add(loaded.model)
        return loaded

    def noted_build(engine, *args, **options):
        build(engine, *args, **options)
        engines.add(engine)

    def noted_ask(engine, *args, **options):
        found.append((len(models), len(engines)))
        return ask(engine, *args, **options)

    monkeypatch.setattr(checkpoint_manager, "load", noted_load)
    monkeypatch.setattr(Engine, "__init__", noted_build)
    monkeypatch.setattr(chat, "evaluate", noted_ask)
    args = ["--tasks", "choice_letter", "--max-items", "2", "--slots", "2"]
    chat_eval_script.main([*FLAGS, *args])
    assert found == [(0, 1)] * 3


def test_the_stage_names_what_it_cannot_evaluate(tmp_path, monkeypatch):
    make_run(tmp_path, monkeypatch, ("chat_sft",))
    with pytest.raises(ConfigError, match="--stages must be all or some of mid_train, chat_sft"):
        chat_eval_script.main([*FLAGS, "--stages", "base_train"])
    with pytest.raises(CheckpointError, match="has no chat_rl checkpoint"):
        chat_eval_script.main([*FLAGS, "--stages", "chat_rl"])
    with pytest.raises(ConfigError, match="--slots must be at least 1"):
        chat_eval_script.main([*FLAGS, "--slots", "0"])
