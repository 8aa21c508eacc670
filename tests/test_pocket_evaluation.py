"""The pocket evaluation: none of it is trained on, and grading is strict where it matters."""

import json
from itertools import islice, pairwise

import pytest

from nanochat import pocket
from nanochat.data.dataset import POCKET_SEED
from nanochat.data.tasks.pocket import PocketProblems, PocketTask
from nanochat.evaluation import core_bundle
from nanochat.pocket.core import as_text
from nanochat.system.config import RunOptions
from nanochat.system.errors import ConfigError

CONVERSATIONS_PER_STAGE = 7000
BASE_CHARACTERS = 3_000_000


def _reply(item: pocket.EvalItem) -> str:
    """The text of the reference reply after its calculator calls."""
    content = item.conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["mid", "sft", "rl"])
def test_no_evaluation_item_is_in_the_conversations(stage):
    seen = islice(pocket.conversations(stage, RunOptions().seed), CONVERSATIONS_PER_STAGE)
    assert pocket.find_leaks(seen) == []


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_no_evaluation_item_is_in_the_base_text(split):
    characters = 0

    def documents():
        nonlocal characters
        for text in pocket.base_documents(split, POCKET_SEED):
            characters += len(text)
            yield text
            if characters > BASE_CHARACTERS / 2:
                return

    assert pocket.find_leaks(documents()) == []


@pytest.mark.parametrize("row", pocket.EVAL_ROWS)
def test_the_scanner_finds_evaluation_items_in_chats_and_in_plain_text(row):
    items = pocket.evaluation(row, 200)
    assert sum(bool(pocket.find_leaks([item.conversation])) for item in items) >= 196
    plain = [
        f"Q: {item.conversation['messages'][0]['content']}\n"
        f"A: {as_text(item.conversation['messages'][1]['content'])}"
        for item in items
    ]
    assert sum(bool(pocket.find_leaks([text])) for text in plain) >= 196


@pytest.mark.parametrize("row", pocket.EVAL_ROWS)
def test_a_row_has_500_items_whose_reference_reply_is_right_and_an_empty_one_wrong(row):
    items = pocket.evaluation(row, 500)
    assert len(items) == 500
    assert len({json.dumps(item.conversation["messages"][0]) for item in items}) == 500
    assert all(pocket.grade(item, _reply(item)) for item in items)
    assert not any(pocket.grade(item, "") for item in items)
    assert not any(pocket.grade(item, "I cannot say.") for item in items)


@pytest.mark.parametrize("row", ["problems", "problems_new_templates"])
def test_word_problem_rows_have_2000_items_for_paired_comparisons(row):
    assert len(pocket.evaluation(row, 2000)) == 2000


def test_the_reply_to_one_item_is_wrong_for_another():
    for row in pocket.EVAL_ROWS:
        if row in ("unknown", "choice_letter", "comparisons"):
            continue
        items = pocket.evaluation(row, 60)
        pairs = pairwise(items)
        wrong = [pocket.grade(a, _reply(b)) for a, b in pairs if a.answer != b.answer]
        assert not any(wrong), row


@pytest.mark.parametrize(
    ("row", "change"),
    [
        ("facts", lambda answer, others: f"It is {answer} or {others[0]}."),
        ("spelling", lambda answer, _: answer.replace(" ", "")),
        ("spelling", lambda answer, _: answer[:-2]),
        ("choice", lambda answer, _: answer[-1]),
        ("choice", lambda answer, _: answer[:-1] + {"A": "B"}.get(answer[-1], "A")),
        ("sums", lambda answer, _: f"The answer is {answer}1."),
        (
            "unknown",
            lambda *_: (
                "I don't know that country well, but its capital is surely the great city of Oslo."
            ),
        ),
    ],
)
def test_a_nearly_right_reply_is_wrong(row, change):
    for item in pocket.evaluation(row, 50):
        # any reply may name what the question is about
        others = [other for other in item.meta.get("others", [""]) if other not in _reply(item)]
        assert not pocket.grade(item, change(item.answer, others))


def test_grading_does_not_mind_case_or_surroundings():
    by_row = {row: pocket.evaluation(row, 1)[0] for row in pocket.EVAL_ROWS}
    assert pocket.grade(by_row["facts"], by_row["facts"].answer.upper())
    assert pocket.grade(by_row["spelling"], by_row["spelling"].answer.upper().replace(" ", "-"))
    assert pocket.grade(by_row["choice"], by_row["choice"].answer + ".")
    assert pocket.grade(by_row["unknown"], "Sorry, I do not know that.")
    assert pocket.grade(by_row["problems"], f"So it is {by_row['problems'].answer} in all.")


def test_rows_and_counts_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="unknown row 'fact'"):
        pocket.evaluation("fact")
    with pytest.raises(ConfigError, match="got 0"):
        pocket.evaluation("facts", 0)


def test_the_core_bundle_is_read_as_one_and_is_the_same_when_written_again(tmp_path):
    pocket.write_core_bundle(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    tasks = core_bundle.read_bundle(tmp_path)
    assert {task.kind for task in tasks} == {"multiple_choice", "schema", "language_modeling"}
    for task in tasks:
        items = core_bundle.read_items(task)
        assert len(items) >= 150
        for place in range(5):
            shown = core_bundle.fewshot(items, place, task.shots)
            texts = core_bundle.prompts(task, items[place], shown)
            assert len(set(texts)) == len(texts) >= 2
    pocket.write_core_bundle(tmp_path)
    assert first == {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}


def test_fifty_prompts_and_ten_dialogues_were_written_by_hand():
    assert len(set(pocket.hand_prompts())) == 50
    assert len(pocket.scripted_dialogues()) == 10
    assert all(3 <= len(script) <= 6 for script in pocket.scripted_dialogues())


def test_rows_are_tasks_and_problems_give_rewards():
    written, letters = PocketTask("sums", 20), PocketTask("choice_letter", 20)
    assert (written.kind, letters.kind, len(written)) == ("generate", "choice", 20)
    assert written.choices(0) == [] and letters.choices(0) == ["A", "B", "C", "D"]
    assert written.evaluate(3, f"The answer is {written.items[3].answer}.")
    learned = PocketProblems(seed=4, size=30)
    answer = pocket.final_number(as_text(learned[7]["messages"][-1]["content"]))
    assert learned.reward(7, f"I think it is {answer}.") == 1.0
    assert learned.reward(7, f"I think it is {answer}0.") == 0.0


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("The answer is 1,204.", "It is 1204", "The answer is 120."),
        ("9 is smaller.", "9 is smaller.", "135 is smaller."),
        ("No.", " no", "Yes."),
        ("A cat is bigger.", "a cat is bigger", "A mouse is bigger."),
        ([{"type": "python", "text": "4-9"}, {"type": "text", "text": "No."}], "No.", "4"),
    ],
)
def test_an_answer_is_alike_by_its_number_or_its_words(reference, right, wrong):
    assert pocket.answers_alike(reference, right)
    assert not pocket.answers_alike(reference, wrong)
