"""Predicts the time of all stages of a run on GPUs, as a range, and what GPUs cost.

Owns: what the stages do besides training steps, how fast GPUs are expected to be at it, and their
prices. Does not own: the FLOPs of the model (gpt/flops.py) or the memory (memory_plan.py).

Nothing here was measured on a GPU by this project: the figures are those of published runs of the
same kind of model, data sheets, and counts. benchmarks/RESULTS.md lists them with their sources.
"""

import re
from dataclasses import dataclass

from nanochat.gpt import GPTConfig, flops


@dataclass(frozen=True)
class Seconds:
    """A time with its range."""

    best: float
    likely: float
    worst: float

    def __add__(self, other: "Seconds") -> "Seconds":
        mine, its = ((x.best, x.likely, x.worst) for x in (self, other))
        return Seconds(*(a + b for a, b in zip(mine, its, strict=True)))

    def times(self, factor: float) -> "Seconds":
        """So many times as long."""
        return Seconds(self.best * factor, self.likely * factor, self.worst * factor)


# Shares of the peak (of bfloat16 for fp8) that training reaches, by the kind of its products: at
# best, likely, at worst. nanochat's 99-minute run reached 57.7% by our count of FLOPs (d24 in fp8
# on 8xH100, a million tokens a step), pull request 830 54% (d22, half a million); fp8 gave 17%.
TRAINING_SHARES = {
    "fp8": (0.58, 0.52, 0.45),
    "bfloat16": (0.55, 0.47, 0.38),
    "float16": (0.50, 0.38, 0.28),
    "float32": (0.75, 0.60, 0.45),
}
FORWARD_SHARES = (0.35, 0.22, 0.12)  # of evaluations, uncompiled, with short rows
SETUP = Seconds(60, 180, 480)  # torch's wheels are 3 GB
START = Seconds(15, 30, 60)  # of a stage: processes, imports, a checkpoint loaded
COMPILE = Seconds(40, 90, 180)
SAVE = Seconds(10, 25, 50)  # the last checkpoint; earlier ones are written while training goes on
TOKENIZER = Seconds(30, 75, 180)  # two billion characters, and their download
SHARD_WAIT = Seconds(0, 30, 240)  # for text that has not arrived while the tokenizer trained
BASE_EVALUATION = Seconds(1, 2, 5)  # each: validation rows and samples
# Of one generated token, per layer of the model: some 23 small kernels of 2 to 5 microseconds in a
# CUDA graph; at worst without one, as launching a kernel takes 6 to 9.
DECODE_LAYER = Seconds(0.00005, 0.0001, 0.0004)
# Counted in the data sets, in tokens of a vocabulary of 32,768.
CORE_TOKENS = 0.2e9
LOSS_TOKENS = 20e6
CHAT_EVAL_CHOICE_TOKENS = 5e6  # a model: MMLU, ARC
CHAT_EVAL_ANSWERS = 1319 + 164 + 256  # a model: GSM8K, HumanEval, spelling
CHAT_EVAL_SLOTS = 32  # answers at a time on each device
ANSWER_TOKENS = 256
GSM8K_PROBLEMS = 7473
CHAT_MODELS = 3  # after mid-training, SFT and RL


# Dollars an hour for one GPU where many rent it, in 2026, roughly; offers differ by half.
DOLLARS_PER_HOUR = {
    "B200": 5.0,
    "H200": 3.5,
    "H100": 3.0,
    "A100": 1.6,
    "L40S": 0.9,
    "A10": 0.75,
    "L4": 0.7,
    "T4": 0.35,
    "V100": 0.5,
    "RTX 5090": 0.7,
    "RTX 4090": 0.4,
    "RTX 3090": 0.25,
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Speed of the machine: FLOP/s of one device at its products, and the kind of these."""

    peak_flops: float
    count: int
    products: str  # of TRAINING_SHARES


@dataclass(frozen=True, kw_only=True)
class ChatPlan:
    """How much the stages after base training do.

    rl_answers: sampled in all, rl_evaluated: greedy ones in evaluations of RL.
    """

    mid_tokens: float
    sft_tokens: float
    rl_steps: int
    rl_answers_per_step: int
    rl_new_tokens: int
    rl_evaluated: int = 200


FULL_MIXTURE = {"mid_tokens": 430e6, "sft_tokens": 11.5e6}  # of the public data sets


def training(config: GPTConfig, tokens: float, machine: Machine, *, factor: float = 1) -> Seconds:
    """Seconds of training steps alone. factor: of the FLOPs, 4/3 if layers are recomputed."""
    needed = factor * tokens * flops.flops_per_token(config, config.sequence_length)
    return _at(TRAINING_SHARES[machine.products], needed, machine)


def _forward(config: GPTConfig, tokens: float, machine: Machine) -> Seconds:
    needed = tokens * flops.flops_per_token(config, config.sequence_length) / 3
    return _at(FORWARD_SHARES, needed, machine)


def _at(shares: tuple[float, float, float], needed: float, machine: Machine) -> Seconds:
    return Seconds(*(needed / (machine.peak_flops * machine.count * share) for share in shares))


def _generation(config: GPTConfig, rounds: float, new_tokens: int) -> Seconds:
    """Seconds of generating answers: so many times all slots of a device, one after the other."""
    return DECODE_LAYER.times(config.depth * rounds * new_tokens)


def stages(
    config: GPTConfig,
    machine: Machine,
    *,
    tokens: int,
    evaluations: int,
    factor: float = 1,
    chat: ChatPlan | None,
) -> dict[str, Seconds]:
    """Seconds of every stage of speedrun.sh, by name; without chat only those of the base model."""
    half = machine
    if machine.products == "fp8":  # only base training uses it
        half = Machine(peak_flops=machine.peak_flops, count=machine.count, products="bfloat16")
    base = training(config, tokens, machine, factor=factor) + BASE_EVALUATION.times(evaluations)
    found = {
        "set-up": SETUP,
        "tok_train, tok_eval": TOKENIZER,
        "base_train": base + START + COMPILE + SHARD_WAIT + SAVE,
        "base_loss": START + _forward(config, LOSS_TOKENS, half),
        "base_eval (CORE)": START + _forward(config, CORE_TOKENS, half),
    }
    if chat is None:
        return found
    slots = CHAT_EVAL_SLOTS * machine.count
    rl_tokens = chat.rl_steps * chat.rl_answers_per_step * 1.5 * chat.rl_new_tokens
    rl_rounds = chat.rl_steps * max(1.0, chat.rl_answers_per_step / slots)
    generated = _generation(config, rl_rounds + max(1.0, chat.rl_evaluated / slots), ANSWER_TOKENS)
    evaluated = _generation(config, max(1.0, CHAT_EVAL_ANSWERS / slots), ANSWER_TOKENS)
    evaluated += _forward(config, CHAT_EVAL_CHOICE_TOKENS, half)
    trained = START + COMPILE + SAVE
    return found | {
        "mid_train": training(config, chat.mid_tokens, half) + trained,
        "chat_sft": training(config, chat.sft_tokens, half) + trained,
        # uncompiled, as its rows have new lengths in every step
        "chat_rl": generated + _forward(config, 3 * rl_tokens, half) + START + SAVE,
        "chat_eval": evaluated.times(CHAT_MODELS) + START,
    }


def price(name: str) -> float | None:
    """Dollars an hour for a GPU of this name; None if it is not known."""
    words = (rf"(?<![A-Za-z0-9]){key}(?![A-Za-z0-9]| Ti| Laptop)" for key in DOLLARS_PER_HOUR)
    found = zip(words, DOLLARS_PER_HOUR.values(), strict=True)
    return next((price for word, price in found if re.search(word, name)), None)
