"""Accuracies of a chat model: from answers it writes, or from the letters it prefers.

Owns these two modes, and ChatCORE. Does not own the questions or their grading (data.tasks).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.data.packing import WIDTH_STEP, batches, pad_rows, up_to_multiple
from nanochat.data.tasks.common import EvalTask
from nanochat.engine import Completion, Engine, Request, SamplingParams
from nanochat.evaluation.accuracy import Accuracy, accuracy, mean_centered
from nanochat.system import distributed
from nanochat.system.distributed import Run
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import Message, Part, render_prompt

CHOICE_BASELINE = 0.25  # four options; the few questions with three or five hardly change it
CHAT_CORE_TASKS = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "LetterCounting")
LETTER_BATCH_TOKENS = 16384

Mode = Literal["write", "letters"]


@dataclass(frozen=True)
class Outcome:
    """A task's accuracy and the answer to each item: {"task", "item", "correct", "text"}.

    The text is the complete answer as `shown`, including calculator calls.
    """

    accuracy: Accuracy
    rows: list[dict[str, Any]]


def evaluate(
    engine: Engine,
    task: EvalTask,
    *,
    run: Run,
    mode: Mode = "write",
    max_items: int | None = None,
    max_new_tokens: int = 256,
) -> Outcome:
    """Ask a model a task's questions. Collective.

    mode: "write" generates an answer greedily, with tools; "letters" compares the likelihoods of
    the option letters as the answer's first token, in one forward pass. The written accuracy of a
    choice task is named "..., written", as it is harder to get right.
    max_items: evaluate a fixed draw of this many items, the same for every model.
    Rank r of w asks items r, r+w, ... of them.
    Raises: ConfigError for letters of a task that has none; OutOfMemory.
    """
    indices = draw_items(len(task), max_items)
    mine = indices[run.rank :: run.world_size]

    def ask() -> list[dict[str, Any]]:
        if mode == "letters":
            texts = shown_texts = preferred_letters(engine, task, mine)
        else:
            asked = [task[i]["messages"][:-1] for i in mine]
            replies = _replies(engine, asked, max_new_tokens)
            texts = [reply.text for reply in replies]
            shown_texts = [shown(reply.parts) for reply in replies]
        return [
            {"task": task.name, "item": i, "correct": task.evaluate(i, text), "text": shown_text}
            for i, text, shown_text in zip(mine, texts, shown_texts, strict=True)
        ]

    rows = [row for part in distributed.gather_work(run, ask) for row in part]
    rows.sort(key=lambda row: row["item"])
    baseline = CHOICE_BASELINE if task.kind == "choice" else 0.0
    written = task.kind == "choice" and mode == "write"
    name = f"{task.name}, written" if written else task.name
    return Outcome(accuracy(name, [row["correct"] for row in rows], baseline), rows)


def chat_core(accuracies: Sequence[Accuracy]) -> tuple[float, float] | None:
    """The mean centered accuracy over the six chat tasks and its standard error.

    None unless all six are given: a mean over fewer is not comparable.
    """
    by_name = {found.name: found for found in accuracies}
    if not all(name in by_name for name in CHAT_CORE_TASKS):
        return None
    return mean_centered([by_name[name] for name in CHAT_CORE_TASKS])


def draw_items(count: int, max_items: int | None) -> list[int]:
    """All items, or a fixed random draw: datasets are often sorted by subject."""
    if max_items is None or max_items >= count:
        return list(range(count))
    return sorted(random.Random(0).sample(range(count), max_items))


@torch.no_grad()
def preferred_letters(engine: Engine, task: EvalTask, indices: Sequence[int]) -> list[str]:
    """Each item's likeliest option letter as the first token of the answer.

    Raises: ConfigError if the task has no letters, or two that start with the same token.
    """
    if task.kind != "choice":
        raise ConfigError(f"{task.name} is answered in free text; it has no option letters")
    # Comparing the letters only, a model that would start with "The answer is" still gets a score,
    # and one forward pass per item is enough.
    prompts = {
        i: render_prompt(task[i]["messages"][:-1], engine.tokenizer, engine.max_len)
        for i in indices
    }
    order = sorted(indices, key=lambda i: -len(prompts[i]))
    best: dict[int, str] = {}
    for batch in batches(order, LETTER_BATCH_TOKENS, lambda i: len(prompts[i])):
        logits = _next_token_logits(engine, [prompts[i] for i in batch])  # [B, V]
        for row, i in enumerate(batch):
            letters = task.choices(i)
            values = logits[row, letter_tokens(engine.tokenizer, letters)]
            best[i] = letters[int(values.argmax())]
    return [best[i] for i in indices]


def letter_tokens(tokenizer: Tokenizer, letters: Sequence[str]) -> list[int]:
    """The first token of each letter as an answer.

    Raises: ConfigError if two letters share it.
    """
    tokens = [tokenizer.encode(letter)[0] for letter in letters]
    if len(set(tokens)) != len(tokens):
        raise ConfigError(f"the tokenizer cannot tell the letters {''.join(letters)} apart")
    return tokens


def _next_token_logits(engine: Engine, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits [B, V] after each prompt, on the CPU; padding on the right changes nothing."""
    width = min(engine.max_len, up_to_multiple(max(map(len, prompts)), WIDTH_STEP))
    inputs = pad_rows(prompts, (len(prompts), width), 0)
    hidden = engine.model.hidden(torch.from_numpy(inputs).to(engine.device))  # [B, T, C]
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=engine.device)  # [B]
    return engine.model.logits(hidden[torch.arange(len(prompts)), last]).float().cpu()


def answer_prompts(
    engine: Engine, prompts: Sequence[str], *, max_new_tokens: int = 128
) -> list[dict[str, Any]]:
    """Greedy answers to single questions, as samples for the report."""
    dialogues = [[{"role": "user", "content": prompt}] for prompt in prompts]
    replies = _replies(engine, dialogues, max_new_tokens)
    return [
        {"prompt": prompt, "text": shown(reply.parts)}
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def hold_dialogues(
    engine: Engine, scripts: Sequence[Sequence[str]], *, max_new_tokens: int = 128
) -> list[dict[str, Any]]:
    """Conversations with scripted user turns, answered by the model, as samples."""
    dialogues: list[list[Message]] = [[] for _ in scripts]
    turns: list[list[dict[str, str]]] = [[] for _ in scripts]
    for number in range(max(map(len, scripts), default=0)):
        unfinished = [i for i, script in enumerate(scripts) if number < len(script)]
        for i in unfinished:
            dialogues[i].append({"role": "user", "content": scripts[i][number]})
        replies = _replies(engine, [dialogues[i] for i in unfinished], max_new_tokens)
        for i, reply in zip(unfinished, replies, strict=True):
            dialogues[i].append({"role": "assistant", "content": reply.parts or ""})
            turns[i].append({"role": "user", "text": scripts[i][number]})
            turns[i].append({"role": "assistant", "text": shown(reply.parts)})
    return [{"turns": shown_turns} for shown_turns in turns]


def shown(parts: Sequence[Part]) -> str:
    """An answer as text, with calculator calls and their results in brackets.

    >>> shown([{"type": "python", "text": "2*3"}, {"type": "python_output", "text": "6"}])
    '[2*3 = 6]'
    """
    text = ""
    for part in parts:
        if part["type"] == "python":
            text += f"[{part['text']}"
        elif part["type"] == "python_output":
            text += f" = {part['text']}] "
        else:
            text += part["text"]
    return text.strip()


def _replies(engine: Engine, dialogues: Sequence[Any], max_new_tokens: int) -> list[Completion]:
    params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    room = max(engine.max_len - max_new_tokens, engine.max_len // 2)
    requests = [
        Request(prompt=render_prompt(dialogue, engine.tokenizer, room), params=params)
        for dialogue in dialogues
    ]
    return engine.generate(requests)
