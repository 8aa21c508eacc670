"""Reinforcement learning's rows, weights and gradients; and that it learns."""

import json
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from nanochat import optim
from nanochat.data import Batch
from nanochat.engine import Completion, Request, SamplingParams
from nanochat.gpt import GPT
from nanochat.optim.schedules import StepSettings
from nanochat.stages import chat_rl
from nanochat.system import config
from nanochat.system.distributed import Run, single_run
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import CharTokenizer
from nanochat.tokenizer.conversation import Conversation
from nanochat.training import rollouts
from nanochat.training.rollouts import (
    AnswerRow,
    Group,
    RolloutBatches,
    RolloutOptions,
    group_advantages,
    group_rows,
    row_batches,
)
from nanochat.training.trainer import token_loss
from tests.engine_helpers import TOKENIZER, random_model, scripted_engine, special

END = special("assistant_end")
LITTLE = CharTokenizer("abq0123456789\ufffd")


class Questions:
    """Short questions, and a reward that is a function of the answer."""

    name, kind = "questions", "generate"

    def __init__(self, reward: Callable[[str], float], size: int = 12) -> None:
        self._reward, self._size = reward, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Conversation:
        messages = [{"role": "user", "content": f"q{index}"}, {"role": "assistant", "content": "a"}]
        return cast(Conversation, {"messages": messages})

    def evaluate(self, index: int, text: str) -> bool:
        return self._reward(text) > 0

    def reward(self, index: int, text: str) -> float:
        return self._reward(text)

    def choices(self, index: int) -> list[str]:
        return []


def begins_with_a(text: str) -> float:
    """1 for an answer that begins with the letter a."""
    return float(text.startswith("a"))


def little_model() -> GPT:
    """A model with few tokens to choose from, so that answers end by themselves soon."""
    return random_model(vocab_size=LITTLE.vocab_size, pairs=0)


def source(
    reward: Callable[[str], float] = begins_with_a,
    model: GPT | None = None,
    run: Run | None = None,
    **options,
) -> RolloutBatches:
    seed = options.pop("seed", 5)
    chosen = {"prompts_per_step": 4, "samples_per_prompt": 6, "max_new_tokens": 16, "top_k": None}
    return RolloutBatches(
        model or little_model(),
        LITTLE,
        Questions(reward),
        RolloutOptions(**{**chosen, **options}),
        device_rows=5,
        run=run or single_run(),
        seed=seed,
    )


def trained_rows(batches: list[Batch]) -> int:
    return sum(int((batch.targets >= 0).any(dim=1).sum()) for batch in batches)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.inputs, y.inputs)
        and torch.equal(x.targets, y.targets)
        and torch.equal(x.weights, y.weights)
        for x, y in zip(a, b, strict=True)
    )


def test_advantages_are_centered_by_group_and_not_divided_by_their_spread():
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]))
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]])
    assert torch.equal(found, expected)


def test_tool_calls_and_the_stop_token_are_trained_and_tool_output_and_prompt_are_not():
    answer = "[python_start]2*3[python_end][output_start]6[output_end] so 6"
    engine = scripted_engine({"2*3?": answer})
    start = [special("user_start"), *TOKENIZER.encode("2*3?"), special("user_end")]
    prompt = [TOKENIZER.bos_id, *start, special("assistant_start")]
    params = SamplingParams(temperature=0, max_new_tokens=40)
    done = engine.generate([Request(prompt=prompt, params=params)])[0]
    wrong = Completion(tokens=[7, END], mask=[1, 1], finish_reason="stop", text="x", parts=[])
    rows = group_rows(Group(0, prompt, [done, wrong], [1.0, 0.0]))
    [batch] = row_batches(rows, device_rows=8, run=single_run(), pad=0)
    trained = batch.targets[0][batch.targets[0] >= 0].tolist()
    call = [special("python_start"), *TOKENIZER.encode("2*3"), special("python_end")]
    assert trained == [*call, *TOKENIZER.encode(" so 6"), END]
    output = [special("output_start"), *TOKENIZER.encode("6"), special("output_end")]
    row = batch.inputs[0].tolist()
    assert any(row[i : i + 3] == output for i in range(len(row)))
    assert batch.weights is not None
    assert batch.weights[:2, 0].tolist() == [0.5, -0.5]
    assert (batch.targets[1] >= 0).sum() == 2
    # A target is the token that follows its input.
    place = int((batch.targets[1] == 7).nonzero())
    assert batch.inputs[1, place] == special("assistant_start")


def test_equal_answers_are_one_row_with_the_sum_of_their_advantages():
    right = Completion(tokens=[7, END], mask=[1, 1], finish_reason="stop", text="x", parts=[])
    wrong = Completion(tokens=[8, END], mask=[1, 1], finish_reason="stop", text="y", parts=[])
    rows = group_rows(Group(0, [1, 2], [right, wrong, right, right], [1.0, 0.0, 1.0, 1.0]))
    assert [(row.tokens, row.advantage) for row in rows] == [
        ([1, 2, 7, END], 0.75),
        ([1, 2, 8, END], -0.75),
    ]


def test_batches_are_of_few_shapes_and_padding_has_no_targets(monkeypatch):
    monkeypatch.setattr(rollouts, "ROW_STEP", 2)
    monkeypatch.setattr(rollouts, "WIDTH_STEP", 4)
    rows = [
        AnswerRow([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 0, 1], 1.0),
        AnswerRow([1, 2], [0, 1], -1.0),
        AnswerRow([5, 6, 7], [0, 0, 0], 2.0),
    ]
    batches = row_batches(rows, device_rows=2, run=single_run(), pad=9)
    assert [tuple(batch.inputs.shape) for batch in batches] == [(2, 8), (2, 4)]
    assert batches[0].inputs[0].tolist() == [1, 2, 3, 4, 5, 9, 9, 9]
    assert batches[0].targets[0].tolist() == [-1, 3, 4, -1, 6, -1, -1, -1]
    assert batches[1].targets.tolist() == [[2, -1, -1, -1], [-1] * 4]
    assert batches[1].weights is not None
    assert batches[1].weights[:, 0].tolist() == [-1.0, 0.0]


def test_the_gradient_is_that_of_the_advantage_weighted_log_likelihood():
    model = random_model(dtype=torch.float64)
    rows = [
        AnswerRow([1, 2, 3, 4, 5], [0, 0, 1, 0, 1], 0.75),
        AnswerRow([1, 2, 8, 9], [0, 0, 1, 1], -0.25),
    ]
    [batch] = row_batches(rows, device_rows=4, run=single_run(), pad=0)
    parameters = list(model.parameters())
    factor = 1 / (batch.targets >= 0).sum().double()
    found = torch.autograd.grad(token_loss(model.loss)(batch, factor), parameters)

    def log_likelihood(row: AnswerRow) -> Tensor:
        logits = model(torch.tensor([row.tokens[:-1]]))[0].log_softmax(dim=-1)
        chosen = [logits[i - 1, t] for i, t in enumerate(row.tokens) if row.mask[i]]
        return row.advantage * torch.stack(chosen).sum()

    wanted = torch.autograd.grad(
        -(log_likelihood(rows[0]) + log_likelihood(rows[1])) / 4, parameters
    )
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-10)


def test_a_step_is_a_function_of_weights_seed_and_position():
    first, second = source(), source()
    steps = [first.next_step() for _ in range(3)]
    assert same(steps[0], second.next_step())
    second.next_step()
    later = source()
    later.load_state(second.state())
    assert same(steps[2], later.next_step())
    assert not same(steps[0], steps[1])
    assert not same(steps[0], source(seed=6).next_step())


def test_answers_of_a_group_differ_and_prompts_come_in_a_drawn_order_each_once_an_epoch():
    batches = source()
    groups = batches._answer(range(12))
    assert all(len({tuple(c.tokens) for c in g.completions}) > 1 for g in groups)
    prompts = [LITTLE.decode(g.prompt) for g in groups]
    assert len(set(prompts)) == 12
    assert prompts != sorted(prompts)
    assert [batches._item(i) for i in range(12)] != [batches._item(i) for i in range(12, 24)]


def test_groups_that_teach_nothing_are_replaced_by_further_prompts():
    once, often = source(max_rounds=1), source(max_rounds=50)
    assert 0 < trained_rows(once.next_step()) < 4 * 6
    assert once.position == 4
    assert trained_rows(often.next_step()) == 4 * 6
    assert often.position > 4


def test_a_step_without_anything_to_learn_has_a_zero_gradient():
    batches = source(lambda text: 1.0, max_rounds=3)
    [batch] = batches.next_step()
    assert batches.position == 12
    assert (batch.targets == -1).all()
    token_loss(batches.model.loss)(batch, torch.ones(())).backward()
    assert all(p.grad is None or not p.grad.any() for p in batches.model.parameters())


def test_figures_are_means_over_answers_and_groups_since_the_last_call():
    batches = source(lambda text: float(len(text)), max_rounds=1)
    batches.next_step()
    figures = batches.figures()
    assert figures["informative"] == 1.0
    assert 0 < figures["ended"] <= 1
    assert 0 < figures["reward"] < figures["answer_tokens"] <= 16
    assert batches.figures() == {}


def test_figures_of_a_resumed_run_count_the_answers_before_it():
    uncut, cut = source(), source()
    uncut.next_step()
    cut.next_step()
    state = json.loads(json.dumps(cut.state()))
    later = source()
    later.load_state(state)
    assert same(uncut.next_step(), later.next_step())
    assert later.figures() == uncut.figures()
    later.load_state({"position": 4})  # of a checkpoint from before they were kept


def test_an_answer_that_does_not_end_counts_as_wrong():
    batches = source(lambda text: float(bool(text)))
    cut = Completion(tokens=[65], mask=[1], finish_reason="length", text="A", parts=[])
    ended = Completion(tokens=[65, END], mask=[1, 1], finish_reason="stop", text="A", parts=[])
    assert (batches._reward(0, cut), batches._reward(0, ended)) == (0.0, 1.0)


def test_two_ranks_together_train_on_the_rows_of_one(monkeypatch):
    monkeypatch.setattr(rollouts, "gather_objects", lambda run, value: [value])

    def rows(rank: int, world_size: int) -> set[tuple[int, ...]]:
        run = Run(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            device=torch.device("cpu"),
            compute_dtype=torch.float32,
        )
        found = source(run=run, max_rounds=1).next_step()
        return {
            tuple(row[row >= 0].tolist())
            for batch in found
            for row in batch.targets
            if (row >= 0).any()
        }

    one, first, second = rows(0, 1), rows(0, 2), rows(1, 2)
    assert first | second == one
    assert first and second


@pytest.mark.slow
def test_the_reward_rises():
    batches = source(prompts_per_step=8, samples_per_prompt=8)
    optimizer = optim.build(
        batches.model, optim.OptimConfig(lr_scale=0.2), single_run(), tokens_per_step=4096
    )
    loss_fn = token_loss(batches.model.loss)
    rewards = []
    for _ in range(10):
        step = batches.next_step()
        rewards.append(batches.figures()["reward"])
        count = sum(int((batch.targets >= 0).sum()) for batch in step)
        for i, batch in enumerate(step):
            with optimizer.accumulate(last=i == len(step) - 1):
                loss_fn(batch, torch.tensor(1 / max(count, 1))).backward()
        optimizer.step(StepSettings())
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 3 * 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples-per-prompt", "1"], "--samples-per-prompt must be at least 2, got 1"),
        (["--temperature", "0"], "--temperature must be above 0, got 0.0"),
        (["--max-rounds", "0"], "--max-rounds must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(chat_rl.ChatRlConfig, options, stage="x")


def test_answers_as_long_as_the_context_are_refused():
    with pytest.raises(ConfigError, match="--max-new-tokens 64 leaves no room for a prompt"):
        source(max_new_tokens=64)


def test_tasks_are_chosen_by_name(tmp_path):
    cfg = config.parse(chat_rl.ChatRlConfig, ["--problems", "30", "--eval-items", "5"], stage="x")
    task, held_out = chat_rl.open_tasks(cfg)
    assert len(task) == 30
    reference = task[3]["messages"][-1]["content"][-1]["text"]
    assert (task.reward(3, reference), task.reward(3, "no idea")) == (1.0, 0.0)
    assert [len(rows) for rows in held_out] == [5, 5]
    for split in ("train", "test"):
        line = '{"question": "1+1?", "answer": "<<1+1=2>>2 #### 2"}\n'
        (tmp_path / f"{split}.jsonl").write_text(line, encoding="utf-8")
    cfg = config.parse(chat_rl.ChatRlConfig, ["--tasks", f"gsm8k={tmp_path}"], stage="x")
    task, _ = chat_rl.open_tasks(cfg)
    assert task.reward(0, "that is #### 2") == 1.0
    for name in ("chess", f"pocket={tmp_path}", "gsm8k="):
        cfg = config.parse(chat_rl.ChatRlConfig, ["--tasks", name], stage="x")
        with pytest.raises(ConfigError, match=f"gsm8k or gsm8k=FOLDER, got '{name}'"):
            chat_rl.open_tasks(cfg)
