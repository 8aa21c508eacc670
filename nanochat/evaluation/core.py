"""CORE: in-context learning tasks for base models, scored by likelihood.

Owns the scoring and the results. An item becomes one token sequence per answer option
(core_bundle); the option with the lowest loss is the model's answer. Nothing is generated.

Likelihoods, because a small base model seldom writes an answer in the requested form, although it
often finds the correct option likelier than the wrong ones: a signal long before it can answer.

Source: Li et al. 2024 (DataComp-LM), arXiv 2406.11794, section 3.5.
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nanochat.data.packing import WIDTH_STEP, batches, pad_rows, up_to_multiple
from nanochat.evaluation import core_bundle
from nanochat.evaluation.accuracy import Accuracy, accuracy
from nanochat.evaluation.core_bundle import AnswerOption, CoreTask
from nanochat.system import distributed, storage
from nanochat.system.distributed import Run
from nanochat.tokenizer import Tokenizer

ITEMS_AT_ONCE = 256  # items tokenized and sorted by length together; bounds memory
LOGITS_AT_ONCE = 2048  # positions whose logits are computed together; bounds memory
CORE_TASKS = frozenset(
    {
        "hellaswag_zeroshot",
        "jeopardy",
        "bigbench_qa_wikidata",
        "arc_easy",
        "arc_challenge",
        "copa",
        "commonsense_qa",
        "piqa",
        "openbook_qa",
        "lambada_openai",
        "hellaswag",
        "winograd",
        "winogrande",
        "bigbench_dyck_languages",
        "agi_eval_lsat_ar",
        "bigbench_cs_algorithms",
        "bigbench_operators",
        "bigbench_repeat_copy_logic",
        "squad",
        "coqa",
        "boolq",
        "bigbench_language_identification",
    }
)


class BaseModel(Protocol):
    """The methods a model needs to be evaluated."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last layer's output; [B, T] -> [B, T, C]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, C] -> [N, V], float32 or wider."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model, and how prompts are given to it.

    context: most tokens of a prompt; longer prompts lose their beginning, but not the BOS.
    batch_tokens: tokens of one forward pass, including padding.
    """

    model: BaseModel
    tokenizer: Tokenizer
    context: int
    device: torch.device
    batch_tokens: int = 16384


def evaluate(
    reader: Reader,
    bundle: Path,
    *,
    run: Run,
    max_items: int | None = None,
    items_path: Path | None = None,
    log_line: Callable[[str], None] = lambda line: None,
) -> list[Accuracy]:
    """Score a model on every task of a bundle. Collective.

    max_items: items per task, the first after shuffling; few-shot examples come from all items.
    items_path: file for one JSON row per item, written by rank 0.
    Rank r of w scores items r, r+w, ...
    Raises: DataError for a bundle that is missing, incomplete or of another layout; OutOfMemory.
    """
    results: list[Accuracy] = []
    rows: list[dict[str, Any]] = []
    for task in core_bundle.read_bundle(bundle):
        items = core_bundle.read_items(task)
        count = len(items) if max_items is None else min(max_items, len(items))
        chosen = range(run.rank, count, run.world_size)
        score = functools.partial(score_items, reader, task, items, chosen)
        item_rows = [row for part in distributed.gather_work(run, score) for row in part]
        item_rows.sort(key=lambda row: row["item"])
        result = accuracy(task.name, [row["correct"] for row in item_rows], task.baseline)
        log_line(
            f"{task.name}: {result.value:.3f} +- {result.stderr:.3f} of {result.n:,} items, "
            f"centered {result.centered:.3f}"
        )
        results.append(result)
        rows += item_rows
    if items_path is not None and run.is_main:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_atomic(items_path, "".join(lines).encode())
    return results


def label(results: Sequence[Accuracy], *, max_items: int | None) -> str:
    """Name of the mean over these tasks: "CORE" only for all of CORE's tasks."""
    names = {result.name for result in results}
    if names == CORE_TASKS:
        name = "CORE"
    elif names <= CORE_TASKS:
        name = f"mean centred accuracy over {len(names)} of {len(CORE_TASKS)} CORE tasks"
    else:
        name = f"mean centred accuracy over {len(names)} tasks (not CORE)"
    return name if max_items is None else f"{name}, at most {max_items} items each"


def score_items(
    reader: Reader, task: CoreTask, items: Sequence[dict[str, Any]], chosen: Sequence[int]
) -> list[dict[str, Any]]:
    """One row for each chosen item: the model's answer, and whether it is correct."""
    rows = []
    for start in range(0, len(chosen), ITEMS_AT_ONCE):
        by_item: dict[int, list[AnswerOption]] = {}
        for index in chosen[start : start + ITEMS_AT_ONCE]:
            examples = core_bundle.fewshot(items, index, task.shots)
            texts = core_bundle.prompts(task, items[index], examples)
            options = core_bundle.answer_options(task, texts, reader.tokenizer, reader.context)
            by_item[index] = options
        scores = iter(_score(reader, list(itertools.chain.from_iterable(by_item.values()))))
        for index, options in by_item.items():
            rows.append(_row(task, index, items[index], [next(scores) for _ in options]))
    return rows


@dataclass(frozen=True)
class _Score:
    """Mean loss of an option in nats, and whether greedy decoding would produce it."""

    loss: float
    greedy: bool


def _row(
    task: CoreTask, index: int, item: dict[str, Any], scores: Sequence[_Score]
) -> dict[str, Any]:
    """The logged row of an item."""
    row: dict[str, Any] = {"task": task.name, "item": index}
    if task.kind == "language_modeling":
        return {**row, "correct": scores[0].greedy}
    losses = [score.loss for score in scores]
    predicted = losses.index(min(losses))
    return {
        **row,
        "correct": predicted == item["gold"],
        "gold": item["gold"],
        "predicted": predicted,
        "losses": [round(loss, 5) for loss in losses],
    }


@torch.no_grad()
def _score(reader: Reader, options: Sequence[AnswerOption]) -> list[_Score]:
    """Score options in batches of similar length.

    Options that differ only in their last token, such as bare letters, share one row.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, option in enumerate(options):
        rows.setdefault(tuple(option.tokens[:-1]), []).append(number)
    scores: dict[int, _Score] = {}
    for batch in batches(sorted(rows, key=len, reverse=True), reader.batch_tokens, len):
        width = min(reader.context, up_to_multiple(len(batch[0]), WIDTH_STEP))
        # Padding on the right: the model is causal, so it cannot change any loss.
        tokens = torch.from_numpy(pad_rows(batch, (len(batch), width), 0))
        hidden = reader.model.hidden(tokens.to(reader.device))  # [B, T, C]
        numbers = [(place, number) for place, row in enumerate(batch) for number in rows[row]]
        parts = [
            # [scored tokens, C]: position i predicts token i + 1
            hidden[place, options[number].start - 1 : len(options[number].tokens) - 1]
            for place, number in numbers
        ]
        targets = [token for _, n in numbers for token in options[n].tokens[options[n].start :]]
        losses, hits = _losses(reader, torch.cat(parts), torch.tensor(targets))
        end = 0
        for (_, number), part in zip(numbers, parts, strict=True):
            start, end = end, end + len(part)
            # The mean, not the sum: a sum would favor short options.
            scores[number] = _Score(losses[start:end].mean().item(), bool(hits[start:end].all()))
    return [scores[number] for number in range(len(options))]


def _losses(reader: Reader, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses in nats, and whether the target is the likeliest token; each [N], on the CPU."""
    losses, hits = [], []
    for start in range(0, len(targets), LOGITS_AT_ONCE):
        wanted = targets[start : start + LOGITS_AT_ONCE].to(reader.device)
        logits = reader.model.logits(hidden[start : start + LOGITS_AT_ONCE])  # [N, V]
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").cpu())
        hits.append((logits.argmax(dim=-1) == wanted).cpu())
    return torch.cat(losses).double(), torch.cat(hits)
