"""Who is served when: fairness, sharing, and what is kept of finished answers."""

from __future__ import annotations

import random

import pytest
import torch

from nanochat.engine import Completion, Engine, Event, Request, SamplingParams
from nanochat.engine.passes import SHARED_PREFILL_TOKENS
from nanochat.engine.sequences import Queue
from nanochat.engine.slots import MIN_PREFIX
from nanochat.gpt import GPT
from tests.engine_helpers import TOKENIZER, naive_greedy, random_model, special


def endless(model: GPT) -> GPT:
    """Make the tokens that end a sequence impossible."""
    with torch.no_grad():
        for name in ("bos", "assistant_end", "python_start", "python_end"):
            model.head_weight[special(name)] = 0
    return model


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


def greedy(prompt: list[int], count: int, **options) -> Request:
    params = SamplingParams(temperature=0, max_new_tokens=count)
    return Request(prompt=prompt, params=params, chat=False, **options)


def run(engine: Engine) -> tuple[dict[int, Completion], dict[int, list[int]]]:
    """Completions, and the numbers of the steps in which each request got a token."""
    done: dict[int, Completion] = {}
    steps: dict[int, list[int]] = {}
    step = 0
    while not engine.idle:
        step += 1
        for event in engine.step():
            if event.token is not None:
                steps.setdefault(event.request_id, []).append(step)
            if event.completion is not None:
                done[event.request_id] = event.completion
    return done, steps


def computed_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of tokens of each forward pass."""
    counts: list[int] = []
    hidden = engine.model.hidden

    def counted(tokens, cache):
        counts.append(tokens.numel())
        return hidden(tokens, cache)

    monkeypatch.setattr(engine.model, "hidden", counted)
    return counts


def test_an_answer_that_has_begun_gets_a_token_in_every_step_even_if_prompts_are_equal():
    engine = Engine(endless(random_model(1)), TOKENIZER, slots=4)
    requests = [
        Request(
            prompt=prompt_of(10),
            params=SamplingParams(temperature=3.0, max_new_tokens=5 + seed % 7, seed=seed),
            chat=False,
        )
        for seed in range(30)
    ]
    ids = [engine.submit(request) for request in requests]
    done, steps = run(engine)
    assert [done[i].tokens for i in ids] == [
        completion.tokens for completion in engine.generate(requests)
    ]
    for taken in steps.values():
        assert taken == list(range(taken[0], taken[0] + len(taken)))
    assert len({tuple(c.tokens) for c in done.values()}) == 30


def test_as_many_equal_prompts_as_there_are_slots_are_read_once(monkeypatch):
    engine = Engine(endless(random_model(1)), TOKENIZER, slots=3)
    counts = computed_tokens(engine, monkeypatch)
    for _ in range(5):
        engine.submit(greedy(prompt_of(40), 4))
    engine.step()
    stats = engine.stats()
    assert (stats.slots_in_use, stats.running, stats.waiting) == (1, 3, 2)
    assert counts == [40]
    done, _ = run(engine)
    assert [done[i].cached_tokens for i in range(5)] == [0, 0, 0, 39, 39]
    assert engine.stats().cached_prefix_tokens == 2 * 39


def test_free_slots_go_to_waiting_clients_in_turn():
    engine = Engine(endless(random_model(1)), TOKENIZER, slots=1)
    order = [("a", 0), ("a", 1), ("a", 2), ("b", 3), ("b", 4), ("c", 5), ("a", 6)]
    for client, seed in order:
        engine.submit(greedy(prompt_of(5, seed), 2, client=client))
    _, steps = run(engine)
    assert sorted(steps, key=lambda i: steps[i]) == [0, 3, 5, 1, 4, 2, 6]


def test_a_queue_keeps_its_order_when_sequences_leave_it_or_come_back():
    engine = Engine(random_model(1), TOKENIZER)
    for client in ("a", "b", "a", "b"):
        engine.submit(greedy([1], 1, client=client))
    waiting: Queue = engine._queue
    zero, two, one, three = waiting
    waiting.discard(one)
    waiting.discard(one)
    assert (waiting.pop(), len(waiting)) == (zero, 2)
    waiting.put_back(zero)
    assert list(waiting) == [three, zero, two]
    assert [waiting.pop() for _ in range(3)] == [three, zero, two]
    assert len(waiting) == 0


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(monkeypatch):
    model = endless(random_model(2, sequence_length=400))
    engine = Engine(model, TOKENIZER, slots=2)
    counts = computed_tokens(engine, monkeypatch)
    text = prompt_of(60)
    for turn in range(6):
        question = prompt_of(10, 100 + turn)
        counts.clear()
        engine.submit(greedy(prompt_of(30, 200 + turn), 3))  # another client in between
        run(engine)
        counts.clear()
        request_id = engine.submit(greedy(text + question, 12))
        completion = run(engine)[0][request_id]
        # The last token of an answer is sampled, and read only now.
        kept = len(text) - 1 if turn else 0
        assert completion.cached_tokens == kept
        assert counts == [len(text) + 10 - kept] + [1] * 11
        expected, margins = naive_greedy(model, text + question, 12)
        assert min(margins) > 1e-4, "the test's own choice is too close to call"
        assert completion.tokens == expected
        text += question + completion.tokens


def test_a_common_beginning_is_copied_and_the_other_conversation_keeps_its_own(monkeypatch):
    model = endless(random_model(3, sequence_length=200))
    engine = Engine(model, TOKENIZER, slots=3)
    system = prompt_of(30)
    first, second = system + prompt_of(50, 1), system + prompt_of(50, 2)
    cached = []
    for prompt in (first, second, first, second, system[: MIN_PREFIX - 1] + prompt_of(9, 3)):
        request_id = engine.submit(greedy(prompt, 4))
        completion = run(engine)[0][request_id]
        assert completion.tokens == naive_greedy(model, prompt, 4)[0]
        cached.append(completion.cached_tokens)
    assert cached == [0, 30, 79, 79, 0]


def test_with_one_slot_the_next_turn_continues_and_another_conversation_takes_its_place():
    engine = Engine(endless(random_model(3)), TOKENIZER, slots=1)
    first, second = prompt_of(20, 1), prompt_of(20, 2)
    found = []
    for prompt in (first, [*first, 1, 2], second, first):
        (last,) = [e for e in engine.stream(greedy(prompt, 3)) if e.completion is not None]
        assert last.completion is not None
        found.append(last.completion.cached_tokens)
    assert found == [0, 20, 0, 0]


def test_the_least_recently_used_conversation_is_dropped_first():
    engine = Engine(endless(random_model(3)), TOKENIZER, slots=3)
    prompts = [prompt_of(20, seed) for seed in range(4)]

    def cached(index: int) -> int:
        request_id = engine.submit(greedy(prompts[index], 2))
        return run(engine)[0][request_id].cached_tokens

    assert [cached(i) for i in (0, 1, 2)] == [0, 0, 0]
    assert cached(0) == 19  # now 1 is the oldest
    assert cached(3) == 0
    assert [cached(i) for i in (0, 2, 3)] == [19, 19, 19]
    assert cached(1) == 0


def test_new_weights_and_generate_use_nothing_that_was_kept():
    model = endless(random_model(4))
    engine = Engine(model, TOKENIZER, slots=2)
    request = greedy(prompt_of(30), 5)

    def cached() -> int:
        request_id = engine.submit(request)
        return run(engine)[0][request_id].cached_tokens

    assert (cached(), cached()) == (0, 29)
    engine.refresh(model)
    assert (cached(), cached()) == (0, 29)
    assert engine.generate([request])[0].cached_tokens == 0
    assert (cached(), cached()) == (0, 29)


def test_prompts_are_read_faster_if_more_of_them_wait_than_streams_run(monkeypatch):
    engine = Engine(endless(random_model(3)), TOKENIZER, slots=6)
    counts = computed_tokens(engine, monkeypatch)
    engine.submit(greedy(prompt_of(20, 1), 20))
    engine.step()
    for seed in range(2, 6):
        engine.submit(greedy(prompt_of(20, seed), 20))
    engine.step()
    assert counts == [20, 1, 4 * 20]  # one decodes, four are read
    engine.submit(greedy(prompt_of(40, 6), 20))
    engine.step()
    assert counts[3:] == [5, SHARED_PREFILL_TOKENS["cpu"]]


def test_statistics_say_whether_equal_seeds_give_equal_answers():
    for dtype, start in (
        (torch.float32, "in float32: equal"),
        (torch.bfloat16, "in bfloat16: equal seeds usually"),
    ):
        engine = Engine(random_model(), TOKENIZER, slots=1, dtype=dtype)
        assert engine.stats().deterministic.startswith(start)


@pytest.mark.parametrize("seed", range(3))
def test_any_arrival_of_requests_is_answered_as_if_each_was_alone(seed):
    """Equal prompts, common beginnings, clients, leavers, tools; 1 to 5 slots."""
    rng = random.Random(seed)
    model = random_model(5, sequence_length=96)
    engine = Engine(model, TOKENIZER, slots=rng.randrange(1, 6), deterministic=seed % 2 == 0)
    alone = Engine(model, TOKENIZER, slots=1)
    roots = [prompt_of(rng.randrange(1, 40), 10 + i) for i in range(3)]
    asked: dict[int, Request] = {}
    left: set[int] = set()
    done: dict[int, Completion] = {}

    def collect(events: list[Event]) -> None:
        done.update({e.request_id: e.completion for e in events if e.completion is not None})

    for _ in range(40):
        for _ in range(rng.choice([0, 0, 1, 1, 4])):
            request = Request(
                prompt=rng.choice(roots) + prompt_of(rng.choice([0, 0, 3, 30]), rng.randrange(3)),
                params=SamplingParams(
                    temperature=rng.choice([0.0, 1.0]),
                    max_new_tokens=rng.randrange(1, 20),
                    seed=rng.randrange(4),
                    presence_penalty=rng.choice([0.0, 0.0, 1.0]),
                ),
                client=rng.choice("ab"),
                prompt_logprobs=rng.random() < 0.1,
            )
            asked[engine.submit(request)] = request
        collect(engine.step())
        running = [i for i in asked if i not in done and i not in left]
        if running and rng.random() < 0.2:
            gone = rng.choice(running)
            assert engine.abort(gone) is not None
            left.add(gone)
    while not engine.idle:
        collect(engine.step())
    assert len(done) + len(left) == len(asked) > 20
    for request_id, completion in done.items():
        expected = alone.generate([asked[request_id]])[0]
        assert (completion.tokens, completion.mask) == (expected.tokens, expected.mask)
        assert completion.finish_reason == expected.finish_reason
    stats = engine.stats()
    assert (stats.slots_in_use, stats.running, stats.waiting) == (0, 0, 0)
    assert 0 < stats.cached_prefix_tokens < stats.prompt_tokens
