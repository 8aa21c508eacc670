"""Reinforcement learning's data: answers the model has just sampled, weighted by their advantage.

Owns: the order of prompts, the groups of answers, rewards, advantages, and the rows the loop trains
on. Does not own: the policy gradient, which is the ordinary token loss with these weights (see
trainer.token_loss).

This is REINFORCE with the group's mean as baseline, GRPO without its extras:
- No critic: the mean of the prompt's other answers already estimates the expected reward.
- No importance ratio or clipping: every answer is trained on once, by the model that sampled it.
- No KL term: rewards come from checked answers, not from a reward model that could be exploited,
  so no reference model is needed to stay close to.

A group is all the answers to one prompt. A group whose answers are all equally good teaches
nothing; it is left out, and another prompt is tried in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.data import Batch
from nanochat.data.packing import IGNORED, WIDTH_STEP, pad_rows, up_to_multiple
from nanochat.data.tasks.common import EvalTask
from nanochat.engine import Completion, Engine, Request, SamplingParams
from nanochat.gpt import GPT
from nanochat.system.config import option
from nanochat.system.distributed import Run, gather_objects
from nanochat.system.errors import CheckpointError, ConfigError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import render_prompt

MAX_NEW_TOKENS = 256
MAX_PROMPT_TOKENS = 512  # bounds the KV cache; longer prompts lose their beginning
ROW_STEP = 8  # rows of a batch are a multiple of this: a new shape costs memory for good on a CPU
TRAINED_TOKENS = 16  # per answer, on average: equal answers are one row, many groups are left out
SLOTS = {"cpu": 128, "cuda": 128}  # answers generated at the same time


class RewardTask(EvalTask, Protocol):
    """Problems whose answers can be scored."""

    def reward(self, index: int, text: str) -> float:
        """How good a text is as the answer to the item; higher is better."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """How answers are sampled for reinforcement learning."""

    prompts_per_step: int = option(16, "prompts per optimizer step, over all ranks", least=1)
    samples_per_prompt: int = option(
        16, "answers to each prompt; each is compared with their mean reward", least=2
    )
    max_new_tokens: int | None = option(
        None,
        "most tokens of an answer, including tool output; longer answers count as wrong; none: "
        "256, or half the context if that is less",
        least=1,
    )
    temperature: float = option(
        1.0, "sampling temperature; the gradient is that of temperature 1", above=0
    )
    top_k: int | None = option(
        50, "sample from this many likeliest tokens; 0 or none: all", least=0
    )
    max_rounds: int = option(
        3,
        "most times a step draws prompts in search of ones with both good and bad answers",
        least=1,
    )


@dataclass(frozen=True)
class Group:
    """The answers to one prompt; position: its number among the prompts drawn so far."""

    position: int
    prompt: list[int]
    completions: list[Completion]
    rewards: list[float]

    @property
    def informative(self) -> bool:
        """Whether some answers are better than others."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True)
class AnswerRow:
    """An answer to train on: tokens including the prompt, which ones were sampled, its weight."""

    tokens: list[int]
    mask: list[int]
    advantage: float


def group_advantages(rewards: Tensor) -> Tensor:
    """Center rewards within each prompt's group, without dividing by their standard deviation.

    rewards: (prompts, samples) float. Returns the same shape; rows sum to 0.
    Source: Dr. GRPO, arXiv 2503.20783: dividing favors prompts that are almost always or almost
    never solved.
    """
    # The baseline lowers the variance of the gradient: answers are pushed up or down for being
    # better or worse than usual for their prompt, not because the prompt is easy.
    return rewards - rewards.mean(dim=1, keepdim=True)  # [prompts, samples]


def group_rows(group: Group) -> list[AnswerRow]:
    """A group's distinct answers as rows; sampled tokens are trained on, a tool's output is not.

    Equal answers become one row with the sum of their advantages, which saves work: a confident
    model gives most answers many times. The gradient keeps its direction but is longer, as the
    step's loss is divided by the tokens of distinct answers only.
    """
    advantages = group_advantages(torch.tensor([group.rewards], dtype=torch.float64))[0].tolist()
    rows: dict[tuple[int, ...], AnswerRow] = {}
    for completion, advantage in zip(group.completions, advantages, strict=True):
        key = tuple(completion.tokens)
        # The gradient is linear in the advantage: one row with the sum replaces n equal rows.
        before = rows[key].advantage if key in rows else 0.0
        rows[key] = AnswerRow(
            tokens=group.prompt + completion.tokens,
            mask=[0] * len(group.prompt) + completion.mask,
            advantage=before + advantage,
        )
    return list(rows.values())


def row_batches(rows: Sequence[AnswerRow], *, device_rows: int, run: Run, pad: int) -> list[Batch]:
    """Rows as micro-batches of at most `device_rows`, sorted by length; at least one.

    Padding has no targets. Without rows there is one micro-batch without targets, so that the rank
    still takes part in the step.
    """
    ordered = sorted(rows, key=lambda row: -len(row.tokens))
    parts = [ordered[i : i + device_rows] for i in range(0, len(ordered), device_rows)] or [[]]
    return [_batch(part, device_rows, run, pad) for part in parts]


def _batch(rows: Sequence[AnswerRow], device_rows: int, run: Run, pad: int) -> Batch:
    """One micro-batch; the rows' weights are their advantages."""
    longest = max((len(row.tokens) - 1 for row in rows), default=1)
    count = min(device_rows, up_to_multiple(len(rows), ROW_STEP))
    shape = count, up_to_multiple(longest, WIDTH_STEP)
    inputs = pad_rows((row.tokens[:-1] for row in rows), shape, pad)
    learned = (np.where(row.mask[1:], row.tokens[1:], IGNORED) for row in rows)
    targets = pad_rows(learned, shape, IGNORED)
    weights = np.zeros(shape, dtype=np.float32)
    for i, row in enumerate(rows):
        weights[i] = row.advantage
    return Batch(*(torch.from_numpy(a).to(run.device) for a in (inputs, targets, weights)))


class RolloutBatches:
    """Batches of the model's own answers; a BatchSource.

    Prompts come from the task, shuffled by the seed in every epoch; every answer has its own seed,
    so a step depends only on the weights, the seed and the position. A group is never split over
    ranks. An answer that does not end counts as wrong: its reward is the lower of the task's
    rewards for the text and for an empty text.
    device_rows: answers per forward pass of training; may be changed until the first step.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        task: RewardTask,
        options: RolloutOptions,
        *,
        device_rows: int = 1,
        run: Run,
        seed: int,
    ) -> None:
        self.model = model
        self.task = task
        self.options = options
        self.position = 0  # prompts drawn so far
        self.device_rows = device_rows
        self._run = run
        self._seed = seed
        length = model.config.sequence_length
        self.max_new_tokens = options.max_new_tokens or min(MAX_NEW_TOKENS, length // 2)
        if self.max_new_tokens >= length:
            raise ConfigError(
                f"--max-new-tokens {self.max_new_tokens} leaves no room for a prompt in the "
                f"model's context of {length} tokens; use fewer"
            )
        # More slots than a rank has answers would be memory without use.
        answers = -(-options.prompts_per_step // run.world_size) * options.samples_per_prompt
        self.engine = Engine(
            model,
            tokenizer,
            slots=min(SLOTS.get(run.device.type, 32), answers),
            max_len=min(length, MAX_PROMPT_TOKENS + self.max_new_tokens),
        )
        self._totals: dict[str, float] = {}

    @property
    def tokens_per_step(self) -> int:
        """Approximate targets per step, over all ranks."""
        return self.options.prompts_per_step * self.options.samples_per_prompt * TRAINED_TOKENS

    def close(self) -> None:
        """Nothing to close: no step is prepared ahead."""

    def next_step(self) -> list[Batch]:
        """Answer prompts with the current weights; this rank's micro-batches. Collective."""
        self.engine.refresh(self.model)
        rows = [row for group in self._collect() for row in group_rows(group)]
        pad = self.engine.tokenizer.bos_id
        return row_batches(rows, device_rows=self.device_rows, run=self._run, pad=pad)

    def state(self) -> dict[str, Any]:
        """Where the next step starts, and what `figures` has gathered so far."""
        return {"position": self.position, "totals": dict(self._totals)}

    def load_state(self, state: Any) -> None:
        """Continue from where `state` was taken. Raises: CheckpointError if it is none."""
        try:
            self.position = int(state["position"])
            self._totals = {name: float(value) for name, value in state.get("totals", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(
                "cannot resume: the checkpoint does not say where in the data"
            ) from None

    def figures(self) -> dict[str, float]:
        """Means over all answers since the last call, the same on every rank.

        reward; informative: share of prompts with better and worse answers; ended: share of answers
        that ended on their own; answer_tokens: tokens per answer, including tool output.
        """
        totals, self._totals = self._totals, {}
        answers, groups = totals.pop("answers", 0), totals.pop("groups", 0)
        return {
            name: total / (groups if name == "informative" else answers)
            for name, total in totals.items()
        }

    def _collect(self) -> list[Group]:
        """This rank's informative groups of one step. Collective."""
        wanted, kept = self.options.prompts_per_step, 0
        mine: list[Group] = []
        # Groups with equal rewards have zero advantages. Drawing more prompts in their place keeps
        # the number of rows, and with it the noise of the gradient, about the same.
        for _ in range(self.options.max_rounds):
            positions = range(self.position, self.position + wanted - kept)
            self.position = positions.stop
            groups = self._answer(positions[self._run.rank :: self._run.world_size])
            mine += [group for group in groups if group.informative]
            for counts in gather_objects(self._run, _counts(groups)):
                kept += int(counts["informative"])
                for name, count in counts.items():
                    self._totals[name] = self._totals.get(name, 0) + count
            if kept >= wanted:
                break
        return mine

    def _answer(self, positions: Sequence[int]) -> list[Group]:
        """Sample and score a group of answers at each position."""
        items = [self._item(position) for position in positions]
        room = self.engine.max_len - self.max_new_tokens
        prompts = [
            render_prompt(self.task[item]["messages"][:-1], self.engine.tokenizer, room)
            for item in items
        ]
        count = self.options.samples_per_prompt
        requests = [
            Request(prompt=prompt, params=self._params(position * count + sample))
            for position, prompt in zip(positions, prompts, strict=True)
            for sample in range(count)
        ]
        completions = self.engine.generate(requests)
        groups = []
        for i, (position, item) in enumerate(zip(positions, items, strict=True)):
            own = completions[i * count : (i + 1) * count]
            groups.append(Group(position, prompts[i], own, [self._reward(item, c) for c in own]))
        return groups

    def _item(self, position: int) -> int:
        """Which item of the task is drawn at a position."""
        epoch, place = divmod(position, len(self.task))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self.task))
        return int(order[place])

    def _params(self, number: int) -> SamplingParams:
        return SamplingParams(
            temperature=self.options.temperature,
            top_k=self.options.top_k,
            max_new_tokens=self.max_new_tokens,
            seed=(self._seed << 40) + number,
        )

    def _reward(self, item: int, completion: Completion) -> float:
        reward = self.task.reward(item, completion.text)
        # Otherwise a model could learn to collect rewards by answers that never end.
        if completion.finish_reason != "stop":
            return min(reward, self.task.reward(item, ""))
        return reward


def _counts(groups: Sequence[Group]) -> dict[str, float]:
    """Sums over groups and their answers, for `figures`."""
    answers = [completion for group in groups for completion in group.completions]
    return {
        "groups": len(groups),
        "answers": len(answers),
        "reward": sum(sum(group.rewards) for group in groups),
        "informative": sum(group.informative for group in groups),
        "ended": sum(c.finish_reason == "stop" for c in answers),
        "answer_tokens": sum(len(c.tokens) for c in answers),
    }
