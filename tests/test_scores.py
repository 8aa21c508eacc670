"""Logprobs, penalties, bias and grammars, each against a slow computation of its own."""

from __future__ import annotations

import random

import pytest
import torch

from nanochat.engine import Completion, Engine, Request, SamplingParams
from nanochat.gpt import GPT
from nanochat.system.errors import ConfigError
from tests.engine_helpers import TOKENIZER, random_model, special

VOCAB = TOKENIZER.vocab_size


def log_softmax(model: GPT, tokens: list[int]) -> torch.Tensor:
    """The distribution after each token, [T, V], from one uncached forward."""
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0, :, :VOCAB].log_softmax(-1)


def random_prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"temperature": 1.7, "top_k": 90},
        {"top_k": 7, "top_p": 0.9},  # fewer candidates than alternatives
        {"temperature": 0},
        {"top_k": 50, "min_p": 0.001, "presence_penalty": 1.5, "logit_bias": {5: 9.0}},
    ],
)
def test_logprobs_are_those_of_a_full_forward_whatever_changes_the_sampling(changed):
    model = random_model(1, vocab_size=320)  # padded beyond the tokenizer
    requests = [
        Request(
            prompt=random_prompt(length, length),
            params=SamplingParams(max_new_tokens=8, seed=length, logprobs=count, **changed),
            chat=False,
        )
        for length, count in ((1, 0), (9, 5), (30, 20), (40, None))
    ]
    found = Engine(model, TOKENIZER, slots=3).generate(requests)
    for request, completion in zip(requests, found, strict=True):
        count = request.params.logprobs
        if count is None:
            assert completion.logprobs == []
            continue
        expected = log_softmax(model, request.prompt + completion.tokens)
        assert len(completion.logprobs) == len(completion.tokens)
        for place, entry in enumerate(completion.logprobs):
            row = expected[len(request.prompt) - 1 + place]
            assert entry is not None
            assert entry.token == completion.tokens[place]
            assert entry.logprob == pytest.approx(row[entry.token].item(), abs=1e-3)
            assert entry.rank == int((row > row[entry.token]).sum()) + 1
            assert [token for token, _ in entry.top] == row.topk(count).indices.tolist()
            assert [p for _, p in entry.top] == pytest.approx(
                row.topk(count).values.tolist(), abs=1e-3
            )


@pytest.mark.parametrize("max_new_tokens", [0, 3])
def test_prompt_logprobs_are_those_of_a_full_forward_for_every_token_but_the_first(max_new_tokens):
    model = random_model(2, sequence_length=700)
    engine = Engine(model, TOKENIZER, slots=2)
    prompts = [random_prompt(length) for length in (1, 2, 40, 690)]
    params = SamplingParams(temperature=0, max_new_tokens=max_new_tokens, logprobs=2)
    requests = [
        Request(prompt=prompt, params=params, chat=False, prompt_logprobs=reads)
        for prompt in prompts
        for reads in (False, True, True)
        if reads or max_new_tokens
    ]
    for request, completion in zip(requests, engine.generate(requests), strict=True):
        assert completion.finish_reason == "length"
        assert len(completion.tokens) == max_new_tokens
        if not request.prompt_logprobs:
            assert completion.prompt_logprobs == []
            continue
        expected = log_softmax(model, request.prompt)
        first, *others = completion.prompt_logprobs
        assert first is None
        assert [entry.token for entry in others if entry] == request.prompt[1:]
        values = [expected[i, token].item() for i, token in enumerate(request.prompt[1:])]
        assert [entry.logprob for entry in others if entry] == pytest.approx(values, abs=1e-3)
        assert all(len(entry.top) == 2 for entry in others if entry)


def naive_penalized(model: GPT, prompt: list[int], params: SamplingParams) -> list[int]:
    """Greedy tokens, the penalties counted anew for each."""
    answer: list[int] = []
    for _ in range(params.max_new_tokens):
        logits = model(torch.tensor([prompt + answer]))[0, -1, :VOCAB].clone()
        for token in range(VOCAB):
            count = answer.count(token)
            logits[token] += (params.logit_bias or {}).get(token, 0.0)
            logits[token] -= params.frequency_penalty * count
            logits[token] -= params.presence_penalty * (count > 0)
        answer.append(int(logits.argmax()))
    return answer


def test_penalties_and_biases_act_as_if_counted_anew_for_each_token_in_any_batch():
    model = random_model(3)
    with torch.no_grad():
        model.head_weight[special("bos")] = 0
    settings = [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.5},
        {"presence_penalty": -2.0, "frequency_penalty": -0.5},
        {"logit_bias": {65: 100.0, 66: 99.5}, "frequency_penalty": 0.2},
        {"logit_bias": dict.fromkeys(range(1, 256, 2), -100.0)},
        {},
    ]
    prompt = random_prompt(8)
    requests = [
        Request(
            prompt=prompt,
            params=SamplingParams(temperature=0, max_new_tokens=20 + i, **options),
            chat=False,
        )
        for i, options in enumerate(settings)
    ]
    with torch.no_grad():
        expected = [naive_penalized(model, prompt, request.params) for request in requests]
    for slots in (8, 2):
        found = Engine(model, TOKENIZER, slots=slots).generate(requests)
        assert [completion.tokens for completion in found] == expected
    assert len({tuple(tokens[:20]) for tokens in expected}) >= 5


class Spelling:
    """A grammar that allows each of some texts, letter by letter, in either case."""

    def __init__(self, text: str, *, ends: bool = True) -> None:
        self.text, self.place, self.ends = text, 0, ends

    def mask(self) -> torch.Tensor | None:
        if self.place >= len(self.text):
            return None
        allowed = torch.zeros(VOCAB, dtype=torch.bool)
        for letter in (self.text[self.place].lower(), self.text[self.place].upper()):
            allowed[ord(letter)] = True
        return allowed

    def accept(self, token: int) -> None:
        assert self.place >= len(self.text) or chr(token).lower() == self.text[self.place]
        self.place += 1

    @property
    def finished(self) -> bool:
        return self.ends and self.place >= len(self.text)


def complete(engine: Engine, params: list[SamplingParams]) -> list[Completion]:
    return engine.generate([Request(prompt=[1, 2, 3], params=p) for p in params])


def test_a_grammar_limits_each_answer_by_itself_and_ends_it_when_complete():
    model = random_model(4)
    params = [
        SamplingParams(grammar=Spelling("yes"), seed=1),
        SamplingParams(grammar=Spelling("never"), seed=2, temperature=5.0, top_k=3, logprobs=1),
        SamplingParams(grammar=Spelling("maybe", ends=False), max_new_tokens=9, temperature=0),
        SamplingParams(max_new_tokens=9, seed=3),
    ]
    yes, never, maybe, free = complete(Engine(model, TOKENIZER, slots=2), params)
    assert (yes.text.lower(), yes.finish_reason) == ("yes", "stop")
    assert (never.text.lower(), never.finish_reason) == ("never", "stop")
    assert all(entry is not None and entry.rank >= 1 for entry in never.logprobs)
    assert maybe.text.lower().startswith("maybe")
    assert [free] == complete(Engine(model, TOKENIZER), params[3:])


def test_requests_that_the_engine_cannot_serve_are_refused_with_the_value():
    engine = Engine(random_model(), TOKENIZER)
    with pytest.raises(ConfigError, match=r"logit_bias has a token outside 0\.\.264"):
        engine.submit(Request(prompt=[1], params=SamplingParams(logit_bias={265: 1.0})))
    with pytest.raises(ConfigError, match="max_new_tokens must be at least 1, got 0"):
        engine.submit(Request(prompt=[1], params=SamplingParams(max_new_tokens=0)))


def test_statistics_count_requests_and_tokens():
    engine = Engine(random_model(5), TOKENIZER, slots=2)
    done = complete(engine, [SamplingParams(max_new_tokens=4, seed=seed) for seed in range(3)])
    engine.submit(Request(prompt=[7] * 5))
    stats = engine.stats()
    assert (stats.slots, stats.slots_in_use, stats.running, stats.waiting) == (2, 0, 0, 1)
    assert (stats.requests, stats.prompt_tokens) == (4, 3 * 3 + 5)
    assert stats.generated_tokens == sum(len(completion.tokens) for completion in done)
    engine.step()
    assert (engine.stats().slots_in_use, engine.stats().running) == (1, 1)
