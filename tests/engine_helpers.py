"""Small models for the tests of the engine and of its users."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nanochat.engine import Engine
from nanochat.engine.decode_step import FixedView
from nanochat.gpt import GPT, GPTConfig, attention
from nanochat.tokenizer import BpeTokenizer

TOKENIZER = BpeTokenizer([bytes([i]) for i in range(256)])
TINY: dict[str, Any] = {
    "vocab_size": TOKENIZER.vocab_size,
    "sequence_length": 64,
    "depth": 2,
    "width": 32,
    "heads": 2,
}


def special(name: str) -> int:
    """The id of a special token by its bare name."""
    return TOKENIZER.special_id(f"<|{name}|>")


def random_model(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> GPT:
    """A model in which every parameter is random, so that each part changes the output."""
    model = GPT(GPTConfig(**{**TINY, **options}), compute_dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def naive_greedy(model: GPT, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens from an uncached forward for each, and the margins of the choices."""
    tokens, margins = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            top = model(torch.tensor([tokens]))[0, -1].topk(2)
            tokens.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
    return tokens[len(prompt) :], margins


class ScriptedModel(torch.nn.Module):
    """Stands in for a GPT: `script` maps the tokens of a text so far to the next one."""

    def __init__(self, script: Callable[[list[int]], int], *, sequence_length: int = 256) -> None:
        super().__init__()
        self.script = script
        self.config = GPTConfig(**{**TINY, "sequence_length": sequence_length})
        self.compute_dtype = torch.float32
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.device = torch.device("cpu")
        self.attention = attention.choose("auto", self.device)
        self.calls: list[SimpleNamespace] = []

    def for_inference(self, dtype: torch.dtype) -> ScriptedModel:
        """Itself."""
        return self

    def hidden(self, tokens: Tensor, view: Any) -> Tensor:
        """The next token's id as the only channel of (B, T, 1)."""
        view.store_tokens(tokens)
        self.calls.append(SimpleNamespace(rows=tokens.shape[0], width=tokens.shape[1]))
        result = torch.zeros(*tokens.shape, 1)
        if isinstance(view, FixedView):
            decoding = (view.places != view.cache.padding).nonzero()[:, 0].tolist()
            rows = [(row, row) for row in decoding]
        else:
            rows = list(enumerate(view._slots.tolist()))
        for row, slot in rows:
            for column, position in enumerate(view.positions[row].tolist()):
                text = view.cache.tokens[slot, : position + 1].tolist()
                result[row, column, 0] = self.script(text)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """All but certain logits (B, V)."""
        return (
            100.0 * torch.nn.functional.one_hot(hidden[:, 0].long(), self.config.vocab_size).float()
        )


def answering(answers: dict[str, list[int]]) -> Callable[[list[int]], int]:
    """A script that gives answers[prompt] token by token, then <|assistant_end|>."""

    def script(text: list[int]) -> int:
        for prompt, answer in answers.items():
            start = TOKENIZER.encode(prompt)
            if text[: len(start)] == start:
                place = len(text) - len(start)
                return answer[place] if place < len(answer) else special("assistant_end")
            if start[: len(text)] == text:
                return 0  # inside the prompt
        raise AssertionError(f"no answer to {TOKENIZER.decode(text)!r}")

    return script


def marked(text: str) -> list[int]:
    """Tokens of a text in which special tokens are written as [python_start] and the like."""
    tokens: list[int] = []
    for piece in text.replace("]", "[").split("["):
        known = piece in ("python_start", "python_end", "output_start", "output_end", "bos")
        known = known or piece in ("assistant_start", "assistant_end", "user_start", "user_end")
        tokens += [special(piece)] if known else TOKENIZER.encode(piece)
    return tokens


def scripted_engine(answers: dict[str, str], *, delay_s: float = 0.0, **options: Any) -> Engine:
    """An engine that answers the last user message by `answers`, else with "?"."""
    marker = {name: TOKENIZER.special_id(f"<|{name}|>") for name in ("user_start", "user_end")}

    def script(text: list[int]) -> int:
        if marker["user_end"] not in text:
            return 0
        start = len(text) - text[::-1].index(marker["user_start"])
        end = len(text) - text[::-1].index(marker["user_end"]) - 1
        asked = TOKENIZER.decode(text[start:end])
        answer = [*marked(answers.get(asked, "?")), TOKENIZER.special_id("<|assistant_end|>")]
        place = len(text) - end - 2
        if place >= 0:
            time.sleep(delay_s)
        return answer[place] if 0 <= place < len(answer) else 0

    return Engine(ScriptedModel(script), TOKENIZER, slots=4, **options)  # type: ignore[arg-type]
