"""The engine generates what the model would alone, in any batch, and handles tools and stops."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanochat.engine import Completion, Engine, Event, Request, SamplingParams
from nanochat.engine.passes import PREFILL_CHUNK, SHARED_PREFILL_TOKENS
from nanochat.engine.tool_calls import MAX_TOOL_CALLS
from nanochat.gpt import GPT, attention
from nanochat.system.errors import ConfigError
from tests.engine_helpers import (
    TOKENIZER,
    ScriptedModel,
    answering,
    marked,
    naive_greedy,
    random_model,
    special,
)

CPU_CHUNK = SHARED_PREFILL_TOKENS["cpu"]
GOLDEN = Path(__file__).parent / "golden"
# Two bf16 computations of one logit may differ by this much at the models' logit range of +-15:
# 8 bits of mantissa make steps of 1/16 there.
BF16_TOLERANCE = 0.125


def greedy(count: int, **options) -> SamplingParams:
    return SamplingParams(temperature=0, max_new_tokens=count, **options)


def scripted(answers: dict[str, str], *, slots: int = 4, **options) -> tuple[Engine, ScriptedModel]:
    model = ScriptedModel(answering({k: marked(v) for k, v in answers.items()}))
    return Engine(model, TOKENIZER, slots=slots, **options), model  # type: ignore[arg-type]


def ask(engine: Engine, prompt: str, params: SamplingParams | None = None, **options) -> Completion:
    request = Request(prompt=TOKENIZER.encode(prompt), params=params or greedy(100), **options)
    return engine.generate([request])[0]


def without_end(model: GPT) -> GPT:
    """Make the tokens that end a sequence impossible, so that sequences reach full length."""
    with torch.no_grad():
        for name in ("bos", "assistant_end", "python_start", "python_end"):
            model.head_weight[special(name)] = 0
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_pattern": "S", "sequence_length": 600},
        {"heads": 4, "kv_heads": 2, "positions": "learned", "tied_head": True},
        {"smear": False, "value_embeddings": False, "backout": False, "norm": "layer"},
    ],
)
def test_greedy_equals_an_uncached_forward_for_each_token_at_every_prompt_length(options):
    model = without_end(random_model(1, **options))
    engine = Engine(model, TOKENIZER, slots=5)
    rng = random.Random(0)
    lengths = [*range(1, 60), 60, 63, 64]
    if options.get("sequence_length") == 600:
        lengths = [1, 2, 100, 127, 128, 129, 130, 140, 257, 511, 512, 513, 540, 590, 600]
    rng.shuffle(lengths)
    prompts = [[rng.randrange(256) for _ in range(length)] for length in lengths]
    requests = [Request(prompt=p, params=greedy(12), chat=False) for p in prompts]
    for prompt, completion in zip(prompts, engine.generate(requests), strict=True):
        room = engine.max_len - len(prompt) + 1
        expected, margins = naive_greedy(model, prompt, min(12, room))
        assert min(margins) > 1e-4, "the test's own choice is too close to call"
        assert completion.tokens == expected
        assert completion.finish_reason == "length"
        assert completion.mask == [1] * len(expected)


@pytest.mark.slow
def test_bf16_greedy_equals_the_uncached_forward_wherever_the_choice_is_clear():
    model = without_end(random_model(2, dtype=torch.bfloat16))
    engine = Engine(model, TOKENIZER, slots=8)
    reference = model.for_inference(torch.bfloat16)
    rng = random.Random(1)
    prompts = [[rng.randrange(256) for _ in range(n)] for n in range(1, 50)]
    requests = [Request(prompt=p, params=greedy(12), chat=False) for p in prompts]
    compared = 0
    for prompt, completion in zip(prompts, engine.generate(requests), strict=True):
        for place, token in enumerate(completion.tokens):
            # each token against the reference on the tokens that the engine generated before it
            text = prompt + completion.tokens[:place]
            with torch.no_grad():
                logits = reference(torch.tensor([text]))[0, -1]
            top = logits.topk(2)
            if top.values[0] - top.values[1] > BF16_TOLERANCE:
                assert token == top.indices[0]
                compared += 1
            assert logits[token] >= top.values[0] - BF16_TOLERANCE
    assert compared > 300


def test_seeded_samples_are_the_same_alone_and_in_any_batch():
    model = random_model(3)
    rng = random.Random(2)
    requests = [
        Request(
            prompt=[rng.randrange(256) for _ in range(rng.randrange(1, 40))],
            params=SamplingParams(
                temperature=rng.choice([0.7, 1.0, 1.3]),
                top_k=rng.choice([None, 0, 5, 10_000]),
                top_p=rng.choice([None, 0.9]),
                max_new_tokens=rng.randrange(1, 25),
                seed=i,
            ),
        )
        for i in range(20)
    ]
    together = Engine(model, TOKENIZER, slots=16).generate(requests)
    few = Engine(model, TOKENIZER, slots=3).generate(requests)
    alone = Engine(model, TOKENIZER, slots=1)
    assert together == few
    assert together == [alone.generate([request])[0] for request in requests]
    assert len({tuple(c.tokens) for c in together}) > 15


def test_unseeded_requests_differ_from_one_another():
    engine = Engine(random_model(3), TOKENIZER, slots=8)
    request = Request(prompt=[65], params=SamplingParams(max_new_tokens=20))
    assert len({tuple(c.tokens) for c in engine.generate([request] * 8)}) == 8


def test_long_prompts_are_read_in_small_chunks_while_others_decode_and_in_large_ones_alone():
    engine, model = scripted({"a": "x" * 40, "b" * 1300: "y"}, slots=2, max_len=1500)
    long_prompt = Request(prompt=TOKENIZER.encode("b" * 1300), params=greedy(5))
    short = engine.submit(Request(prompt=TOKENIZER.encode("a"), params=greedy(50)))
    engine.step()
    read = engine.submit(long_prompt)
    text = ""
    for _ in range(4):
        text += "".join(e.text for e in engine.step() if e.request_id == short)
    assert [call.width for call in model.calls if call.width > 1] == [CPU_CHUNK] * 4
    assert text == "xxxx"
    engine.abort(short)
    done = [e.completion for _ in range(5) for e in engine.step() if e.completion is not None]
    widths = [call.width for call in model.calls if call.width > 1]
    assert widths[4:] == [PREFILL_CHUNK, PREFILL_CHUNK, 1300 - 4 * CPU_CHUNK - 2 * PREFILL_CHUNK]
    assert [completion.text for completion in done] == ["y"]
    assert engine.abort(read) is None


def test_a_prompt_of_several_requests_is_prefilled_once_and_answered_as_if_alone(monkeypatch):
    model = without_end(random_model(4, window_pattern="S", sequence_length=600))
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(n)] for n in (1, 2, 40, 590)]
    engine = Engine(model, TOKENIZER, slots=20)
    chunks_read = 0
    hidden = engine.model.hidden

    def counted(tokens, cache):
        nonlocal chunks_read
        chunks_read += tokens.shape[0] if tokens.shape[1] > 1 else 0
        return hidden(tokens, cache)

    monkeypatch.setattr(engine.model, "hidden", counted)
    found = engine.generate(
        [Request(prompt=p, params=greedy(8), chat=False) for p in prompts for _ in range(5)]
    )
    for i, completion in enumerate(found):
        expected, margins = naive_greedy(model, prompts[i // 5], 8)
        assert min(margins) > 1e-4, "the test's own choice is too close to call"
        assert completion.tokens == expected
    assert chunks_read == 4  # the longest prompt needs two


def test_a_prompt_that_another_request_is_still_answering_is_answered_as_if_alone():
    """All of it is cached there, but its last token must be read again: to predict the next."""
    model = without_end(random_model(4))
    prompt = [random.Random(3).randrange(256) for _ in range(20)]
    expected, margins = naive_greedy(model, prompt, 8)
    assert min(margins) > 1e-4, "the test's own choice is too close to call"
    engine = Engine(model, TOKENIZER, slots=3)
    request = Request(prompt=prompt, params=greedy(8), chat=False)
    done: dict[int, Completion] = {}
    submitted = [engine.submit(request)]
    for step in range(20):
        if step == 3:
            submitted.append(engine.submit(request))
        done |= {e.request_id: e.completion for e in engine.step() if e.completion is not None}
    assert engine.idle
    assert [done[request_id].tokens for request_id in submitted] == [expected, expected]


def test_requests_that_share_a_prefill_continue_when_the_first_is_aborted():
    model = without_end(random_model(5, sequence_length=600))
    prompt = [random.Random(4).randrange(256) for _ in range(PREFILL_CHUNK + 20)]
    engine = Engine(model, TOKENIZER)
    request = Request(prompt=prompt, params=greedy(5), chat=False)
    reader, *others = [engine.submit(request) for _ in range(3)]
    engine.step()
    engine.abort(reader)
    done: dict[int, Completion] = {}
    while not engine.idle:
        done |= {e.request_id: e.completion for e in engine.step() if e.completion is not None}
    assert sorted(done) == others
    assert all(c.tokens == naive_greedy(model, prompt, 5)[0] for c in done.values())


@pytest.mark.parametrize("slots", [40, 3])
def test_equal_sequences_are_computed_once_until_they_sample_different_tokens(slots, monkeypatch):
    model = without_end(random_model(4))
    engine = Engine(model, TOKENIZER, slots=slots)
    computed = 0
    hidden = engine.model.hidden

    def counted(tokens, cache):
        nonlocal computed
        computed += tokens.shape[0] if tokens.shape[1] == 1 else 0
        return hidden(tokens, cache)

    monkeypatch.setattr(engine.model, "hidden", counted)
    requests = [
        Request(
            prompt=list(range(30 + prompt)),
            params=SamplingParams(top_k=2, temperature=0.5, max_new_tokens=10, seed=seed),
        )
        for prompt in range(3)
        for seed in range(12)
    ]
    found = engine.generate(requests)
    texts = [(len(r.prompt), *c.tokens) for r, c in zip(requests, found, strict=True)]
    decoded = {text[:end] for text in texts for end in range(2, 11)}
    assert len(set(texts)) < len(decoded) < 9 * 36  # some are equal to the end, others at first
    if slots == 40:
        assert computed == len(decoded)
    alone = Engine(model, TOKENIZER, slots=1)
    assert found == [alone.generate([request])[0] for request in requests]
    assert engine.stats().slots_in_use == 0


def test_sequences_leave_a_shared_slot_one_by_one_and_the_others_continue():
    engine, model = scripted({"q": "abcdefgh"}, slots=4)
    prompt = TOKENIZER.encode("q")
    rows = [engine.submit(Request(prompt=prompt, params=greedy(n))) for n in (3, 50, 5, 50)]
    texts = {}
    for _ in range(4):
        texts |= {e.request_id: e.completion.text for e in engine.step() if e.completion}
    aborted = engine.abort(rows[1])
    while not engine.idle:
        texts |= {e.request_id: e.completion.text for e in engine.step() if e.completion}
    assert aborted is not None
    assert (aborted.text, aborted.finish_reason) == ("abcd", "abort")
    assert texts == {rows[0]: "abc", rows[2]: "abcde", rows[3]: "abcdefgh"}
    assert all(call.rows == 1 for call in model.calls)


@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_sequences_separate_at_a_tool_that_not_all_of_them_use(deterministic):
    called, output = "[python_start]6*7[python_end]", "[output_start]42[output_end]"
    engine, _ = scripted({"q": called + output + "yes"}, slots=2, deterministic=deterministic)
    prompt = TOKENIZER.encode("q")
    requests = [Request(prompt=prompt, params=greedy(40), tools=i != 1) for i in range(4)]
    requests.append(Request(prompt=prompt, params=greedy(6)))  # has no room for the output
    *found, cut = engine.generate(requests)
    assert [c.text for c in found] == ["yes"] * 4
    forced = len(marked(output))
    assert [c.mask.count(0) for c in found] == [forced, 0, forced, forced]
    assert (cut.tokens, cut.finish_reason) == (marked(called), "length")


def test_the_calculator_is_called_and_its_output_read_in_one_step():
    engine, model = scripted(
        {"q": "It is [python_start]12*(3+4)[python_end][output_start]84[output_end]84."}
    )
    completion = ask(engine, "q")
    assert completion.text == "It is 84."
    assert completion.parts == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "12*(3+4)"},
        {"type": "python_output", "text": "84"},
        {"type": "text", "text": "84."},
    ]
    assert completion.finish_reason == "stop"
    assert completion.tokens[-1] == special("assistant_end")
    forced = [t for t, m in zip(completion.tokens, completion.mask, strict=True) if m == 0]
    assert forced == marked("[output_start]84[output_end]")
    assert [call.width for call in model.calls].count(5) == 1  # python_end and the output
    assert len(model.calls) == sum(completion.mask)


def test_tools_in_threads_give_the_same_answers_while_other_sequences_continue():
    answers = {
        f"q{i}": f"[python_start]{i}*7[python_end][output_start]{i * 7}[output_end]ok"
        for i in range(9)
    }
    engine, _ = scripted(answers, deterministic=False)
    requests = [Request(prompt=TOKENIZER.encode(q), params=greedy(100)) for q in answers]
    assert [c.parts[1]["text"] for c in engine.generate(requests)] == [str(i * 7) for i in range(9)]


def test_a_refused_expression_is_answered_with_error():
    engine, _ = scripted(
        {"q": "[python_start]import os[python_end][output_start]error[output_end]Sorry."}
    )
    completion = ask(engine, "q")
    assert completion.text == "Sorry."
    assert completion.parts[1] == {"type": "python_output", "text": "error"}


def test_tool_calls_are_limited():
    call = "[python_start]1[python_end][output_start]1[output_end]"
    late = "[python_start]1[python_end][output_start]error[output_end]"
    engine, _ = scripted({"q": call * MAX_TOOL_CALLS + late + "done"})
    assert ask(engine, "q", greedy(500)).text == "done"


@pytest.mark.parametrize("options", [{"tools": False}, {"chat": False}])
def test_tools_can_be_off(options):
    engine, _ = scripted({"q": "[python_start]1+1[python_end]no"})
    completion = ask(engine, "q", greedy(10), **options)
    assert 0 not in completion.mask
    assert completion.parts[0] == {"type": "python", "text": "1+1"}
    assert completion.text.startswith("no")


def test_a_stray_python_end_runs_nothing():
    engine, _ = scripted({"q": "a[python_end]b"})
    assert ask(engine, "q").text == "ab"


@pytest.mark.parametrize(
    ("answer", "chat", "text", "reason"),
    [
        ("hi", True, "hi", "stop"),
        ("hi[bos]more", True, "hi", "stop"),
        ("hi[bos]more", False, "hi", "stop"),
        ("[assistant_end]", True, "", "stop"),
        ("h[assistant_end]i[bos]", False, "hi", "stop"),
        ("h[user_start]i", True, "hi", "stop"),
        ("a" * 30, True, "a" * 20, "length"),
    ],
)
def test_texts_end_at_the_right_token_and_never_show_it(answer, chat, text, reason):
    engine, _ = scripted({"q": answer})
    completion = ask(engine, "q", greedy(20), chat=chat)
    assert (completion.text, completion.finish_reason) == (text, reason)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("world",), "hello "),
        (("lo w", "hello world"), "hel"),
        (("o", "l"), "he"),
        (("nowhere",), "hello world, worlds"),
        (("worlds!",), "hello world, worlds"),
    ],
)
def test_stop_strings_cut_the_text_and_their_beginnings_are_held_back(stop, expected):
    engine, _ = scripted({"q": "hello world, worlds"})
    completion = ask(engine, "q", greedy(50, stop=stop))
    assert (completion.text, completion.finish_reason) == (expected, "stop")
    params = greedy(50, stop=stop)
    shown = ""
    for event in engine.stream(Request(prompt=TOKENIZER.encode("q"), params=params)):
        shown += event.text
        assert expected.startswith(shown)
    assert shown == expected


def test_stop_strings_are_not_looked_for_in_tool_calls():
    engine, _ = scripted({"q": "[python_start]1+2[python_end][output_start]3[output_end]1+2 is 3"})
    assert ask(engine, "q", greedy(50, stop=("2 is",))).text == "1+"


def test_streaming_shows_complete_characters_only_and_adds_up_to_the_completion():
    answer = "naïve 😀 ünï — 漢字"
    engine, _ = scripted({"q": answer})
    events = list(engine.stream(Request(prompt=TOKENIZER.encode("q"), params=greedy(100))))
    assert all("\N{REPLACEMENT CHARACTER}" not in event.text for event in events)
    assert "".join(event.text for event in events) == answer
    assert events[-1].done
    assert events[-1].completion is not None
    assert events[-1].completion.text == answer
    assert [e.token for e in events[:-1]] == events[-1].completion.tokens


def test_half_a_character_at_the_end_is_shown_as_broken_not_lost():
    engine, _ = scripted({"q": "ab😀"})
    completion = ask(engine, "q", greedy(4))
    assert completion.text == "ab\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(("length", "produced"), [(30, 3), (31, 2), (32, 1), (33, 0), (500, 0)])
def test_a_full_context_ends_the_text_without_a_crash(length, produced):
    engine, _ = scripted({"q": "a" * 600}, max_len=32)
    completion = ask(engine, "q" + "a" * (length - 1))
    assert (len(completion.tokens), completion.finish_reason) == (produced, "length")
    assert engine.idle


def test_a_tool_output_that_does_not_fit_ends_the_text():
    answer = "[python_start]2**60[python_end][output_start]"
    engine, _ = scripted({"q": answer}, max_len=20)
    completion = ask(engine, "q")
    assert completion.finish_reason == "length"
    assert completion.tokens == marked("[python_start]2**60[python_end]")
    engine, _ = scripted({"q": answer})
    assert len(ask(engine, "q", greedy(10)).tokens) <= 10


@pytest.mark.parametrize(("room", "outputs"), [(-1, 0), (0, 0), (1, 1)])
def test_a_tool_output_is_read_only_if_a_token_can_follow_it(room, outputs):
    """4 is read as <|output_start|>4<|output_end|>, three tokens after the call's five."""
    engine, _ = scripted({"q": "[python_start]2+2[python_end]"})
    completion = ask(engine, "q", greedy(5 + 3 + room))
    assert completion.mask.count(0) == 3 * outputs
    assert len(completion.tokens) == len(completion.mask) <= 5 + 3 + room
    assert completion.finish_reason == ("stop" if outputs else "length")


def test_abort_frees_the_slot_for_the_next():
    engine, _ = scripted(dict.fromkeys("pqr", "a" * 50), slots=1)
    first = engine.submit(Request(prompt=TOKENIZER.encode("p"), params=greedy(40)))
    second = engine.submit(Request(prompt=TOKENIZER.encode("q"), params=greedy(2)))
    third = engine.submit(Request(prompt=TOKENIZER.encode("r"), params=greedy(2)))
    for _ in range(3):
        engine.step()
    aborted = engine.abort(first)
    assert aborted is not None
    assert (aborted.text, aborted.finish_reason) == ("aaa", "abort")
    assert engine.abort(first) is None
    assert engine.abort(third) is not None
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    assert {event.request_id for event in events} == {second}


def test_closing_a_stream_aborts_it_and_an_interrupted_generate_leaves_nothing():
    engine, model = scripted({"q": "a" * 50})
    stream = engine.stream(Request(prompt=TOKENIZER.encode("q"), params=greedy(40)))
    next(stream)
    stream.close()
    assert engine.idle

    def broken(text: list[int]) -> int:
        raise RuntimeError("device lost")

    good, model.script = model.script, broken
    with pytest.raises(RuntimeError, match="device lost"):
        ask(engine, "q")
    assert engine.idle
    model.script = good
    assert ask(engine, "q", greedy(3)).text == "aaa"


def test_refresh_takes_over_new_weights_and_keeps_its_own_copy():
    model = without_end(random_model(5))
    engine = Engine(model, TOKENIZER, slots=2)
    request = Request(prompt=[1, 2, 3], params=greedy(10), chat=False)
    before = engine.generate([request])[0].tokens
    model.load_state_dict(without_end(random_model(6)).state_dict())
    assert engine.generate([request])[0].tokens == before
    engine.refresh(model)
    after = engine.generate([request])[0].tokens
    assert after == naive_greedy(model, [1, 2, 3], 10)[0] != before


def test_a_vocabulary_padded_beyond_the_tokenizer_is_never_sampled():
    model = random_model(7, vocab_size=320)
    engine = Engine(model, TOKENIZER, slots=4)
    requests = [
        Request(prompt=[i], params=SamplingParams(temperature=5.0, max_new_tokens=40, seed=i))
        for i in range(8)
    ]
    for completion in engine.generate(requests):
        assert max(completion.tokens) < TOKENIZER.vocab_size


def test_senseless_prompts_are_refused():
    engine, _ = scripted({"q": "a"})
    with pytest.raises(ConfigError, match="the prompt has no tokens"):
        engine.submit(Request(prompt=[]))
    with pytest.raises(ConfigError, match=r"token outside 0\.\.264"):
        engine.submit(Request(prompt=[265]))
    with pytest.raises(ConfigError, match="max_len 100000 is beyond the model's"):
        Engine(random_model(), TOKENIZER, max_len=100_000)


def golden_requests() -> list[Request]:
    """The prompts of the golden generations: greedy and sampled, short and long."""
    texts = ["A", "Once upon a time", "2 + 2 =", "The quick brown fox jumps over the lazy dog"]
    settings = [
        greedy(16),
        SamplingParams(max_new_tokens=16, seed=1),
        SamplingParams(temperature=0.8, top_k=10, max_new_tokens=16, seed=2),
        SamplingParams(temperature=1.2, top_p=0.8, max_new_tokens=16, seed=3),
    ]
    return [
        Request(prompt=[TOKENIZER.bos_id, *TOKENIZER.encode(text)], params=params)
        for text in texts
        for params in settings
    ]


def test_golden_generations_of_a_fixed_checkpoint_have_not_changed():
    """A change here means that trained models would generate different text than before.

    tests/golden/engine.safetensors holds `random_model(11)` in float16; engine.json what the first
    version of this engine made of it.
    """
    model = random_model(pairs=0, convolution=False)
    weights = load_file(GOLDEN / "engine.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    completions = Engine(model, TOKENIZER, slots=6).generate(golden_requests())
    expected = json.loads((GOLDEN / "engine.json").read_text(encoding="utf-8"))
    assert [c.tokens for c in completions] == expected


def test_new_sequences_are_computed_by_the_models_own_attention(monkeypatch):
    """Not by the best of the device, which may not take the model's dtype."""
    model = random_model()
    model.attention = attention.choose("sdpa", model.device)
    attend, used = attention.attend, []

    def watch(*args, backend, **options):
        used.append(backend.name)
        return attend(*args, backend=backend, **options)

    monkeypatch.setattr(attention, "attend", watch)
    engine = Engine(model, TOKENIZER, slots=2)
    engine.generate([Request(prompt=[1, 2, 3], params=SamplingParams(max_new_tokens=1))])
    assert set(used) == {"sdpa"}
