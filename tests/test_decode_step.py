"""Steps of fixed shapes give the tokens of any other step, and record once for each shape."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.engine import Completion, Engine, Event, Request, SamplingParams, decode_step
from nanochat.engine.decode_step import CudaGraphs, Shape, row_bucket, shape_of, unrecorded
from nanochat.engine.kv_cache import KVCache
from nanochat.engine.sequences import Slot
from nanochat.gpt import GPT, products
from nanochat.gpt.decoder import Decoder
from tests.engine_helpers import TOKENIZER, naive_greedy, random_model, scripted_engine

SYNCS = {"_local_scalar_dense", "item", "nonzero", "lift_fresh", "equal", "is_nonzero", "tolist"}
VARIANTS: list[dict[str, Any]] = [
    {"window": 40, "pairs": 1},
    {"window": 200, "window_pattern": "S", "kv_heads": 1},
    {"positions": "learned", "norm": "layer", "smear": False, "tied_head": True},
]


class Recording(TorchDispatchMode):
    """A CUDA graph on a CPU: repeats operations on the same memory, and refuses to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[Any, ...]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name.split("::")[1] not in SYNCS, f"{func} waits for the device"
        out = func(*args, **(kwargs or {}))
        self.launches.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Compute everything again from what is in the inputs' memory now."""
        self.replays += 1
        for func, args, kwargs, out in self.launches:
            # A number that Python computed is repeated as it was, as on a GPU.
            again = func(*args, **kwargs)
            results = zip(_flat(out), _flat(again), strict=True)
            for memory, new in results:
                if memory.data_ptr() != new.data_ptr():  # else it is a view, or was written to
                    memory.copy_(new)


def _flat(out: Any) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else [x for x in out if x is not None]


@pytest.fixture
def graphs(monkeypatch) -> list[Recording]:
    """Stand-ins for the parts of torch.cuda that record; returns all recordings."""
    made: list[Recording] = []

    def graph_object() -> Recording:
        made.append(Recording())
        return made[-1]

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            assert isinstance(other, Stream)

    def record(graph: Recording, *, pool, stream, capture_error_mode) -> Recording:
        assert pool == (0, 1) and isinstance(stream, Stream)
        assert capture_error_mode == "thread_local"
        return graph

    for name, stand_in in {
        "CUDAGraph": graph_object,
        "graph": record,
        "graph_pool_handle": lambda: (0, 1),
        "Stream": Stream,
        "current_stream": Stream,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


def recorder() -> CudaGraphs:
    return CudaGraphs(torch.device("cuda"))


def request(rng: random.Random, roots: list[list[int]], longest: int) -> Request:
    rest = [rng.randrange(256) for _ in range(rng.choice([0, 0, 3, 30, longest]))]
    return Request(
        prompt=rng.choice(roots) + rest,
        params=SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            max_new_tokens=rng.randrange(1, 40),
            seed=rng.randrange(4),
            presence_penalty=rng.choice([0.0, 0.0, 1.0]),
            logprobs=rng.choice([None, None, 2]),
        ),
        client=rng.choice("ab"),
        prompt_logprobs=rng.random() < 0.1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o))
@pytest.mark.parametrize("recorded", [False, True])
def test_any_arrival_of_requests_gets_the_tokens_of_steps_that_fit_exactly(
    options, recorded, graphs
):
    """Arrivals, leavers, shared prompts, prefixes, tools' tokens, lengths up to five buckets."""
    rng = random.Random(3)
    model = random_model(5, torch.float64, sequence_length=700, **options)
    fixed = Engine(
        model, TOKENIZER, slots=9, recorder=recorder() if recorded else unrecorded, max_len=650
    )
    exact = Engine(model, TOKENIZER, slots=1, max_len=650)
    fixed.model.use_operations_of("cuda")
    roots = [[rng.randrange(256) for _ in range(length)] for length in (1, 50, 120, 250, 480)]
    asked: dict[int, Request] = {}
    left: set[int] = set()
    done: dict[int, Completion] = {}

    def collect(events: list[Event]) -> None:
        done.update({e.request_id: e.completion for e in events if e.completion is not None})

    for _ in range(40):
        for _ in range(rng.choice([0, 0, 1, 1, 6])):
            one = request(rng, roots, 140)
            asked[fixed.submit(one)] = one
        collect(fixed.step())
        running = [i for i in asked if i not in done and i not in left]
        if running and rng.random() < 0.2:
            left.add(rng.choice(running))
            assert fixed.abort(max(left & set(running), key=running.index)) is not None
    while not fixed.idle:
        collect(fixed.step())
    assert len(done) > 20 and left
    for request_id, completion in done.items():
        expected = exact.generate([asked[request_id]])[0]
        assert (completion.tokens, completion.mask) == (expected.tokens, expected.mask)
        assert completion.finish_reason == expected.finish_reason
        for got, other in zip(completion.logprobs, expected.logprobs, strict=True):
            assert (got is None) == (other is None)
            assert got is None or other is None or got.logprob == pytest.approx(other.logprob)
    assert 0 < fixed.stats().cached_prefix_tokens < fixed.stats().prompt_tokens
    assert fixed._decode is not None
    shapes = fixed._decode.recordings
    assert len({shape.rows for shape in shapes}) >= 3 and len({s.end for s in shapes}) >= 4
    if recorded:  # once each, then repeated
        assert len(graphs) == len(shapes) < sum(graph.replays for graph in graphs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_tokens_of_recordings_equal_those_of_the_same_steps_unrecorded(dtype, graphs):
    model = random_model(1, dtype, sequence_length=300)
    requests = [
        Request(
            prompt=[1 + i] * (1 + 40 * i),
            params=SamplingParams(temperature=0, max_new_tokens=30),
            chat=False,
        )
        for i in range(6)
    ]
    answers = []
    for record in (recorder(), unrecorded):
        engine = Engine(model, TOKENIZER, slots=4, recorder=record)
        engine.model.use_operations_of("cuda")
        answers.append([c.tokens for c in engine.generate(requests)])
    assert answers[0] == answers[1]
    assert graphs and all(graph.replays for graph in graphs)
    if dtype == torch.float32:
        assert answers[0][3] == naive_greedy(model, requests[3].prompt, 30)[0][: len(answers[0][3])]


def test_a_long_run_records_nothing_twice_and_new_weights_need_no_new_recording(
    graphs, monkeypatch
):
    monkeypatch.setattr(products, "_packs", lambda dtype: False)  # stored as on a GPU
    model = random_model(5, torch.float64)
    engine = Engine(model, TOKENIZER, slots=3, recorder=recorder())
    ask = [
        Request(
            prompt=[1, 2, 3 + i],
            params=SamplingParams(temperature=0, max_new_tokens=20),
            chat=False,
        )
        for i in range(3)
    ]
    answers = []
    for seed in (5, 6, 7, 6):
        model.load_state_dict(random_model(seed).state_dict())
        engine.refresh(model)
        answers.append([c.tokens for c in engine.generate(ask)])
        expected = [naive_greedy(model, r.prompt, 20)[0] for r in ask]
        assert [e[: len(a)] for a, e in zip(answers[-1], expected, strict=True)] == answers[-1]
        assert len(graphs) <= 3  # steps of one, two and four rows
    assert answers[0] != answers[1] == answers[3]
    assert sum(graph.replays for graph in graphs) > 4 * 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_weights_are_replaced_in_the_same_memory(dtype, monkeypatch):
    monkeypatch.setattr(products, "_packs", lambda dtype: False)
    options = {"norm": "rms_weight", "positions": "learned", "activation": "swiglu"}
    first, second = random_model(1, **options), random_model(2, **options)
    decoder = first.for_inference(dtype)
    places = [tensor.data_ptr() for tensor in all_memory(decoder)]
    decoder.load(second.state_dict())
    assert [tensor.data_ptr() for tensor in all_memory(decoder)] == places
    tokens = torch.arange(20)[None]
    assert torch.equal(decoder(tokens), second.for_inference(dtype)(tokens))


def all_memory(decoder: Decoder) -> list[torch.Tensor]:
    from nanochat.gpt.decoder_weights import _tensors

    weights = decoder._weights
    parts = [weights.embeddings, *weights.layers, weights.output]
    return [tensor for part in parts for tensor in _tensors(part)]


def test_recordings_are_limited_and_the_least_recently_used_one_goes(graphs, monkeypatch):
    monkeypatch.setattr(decode_step, "MOST_RECORDINGS", 2)
    model = random_model(3)
    engine = Engine(model, TOKENIZER, slots=8, recorder=recorder())

    def ask(rows: int) -> None:
        params = SamplingParams(temperature=0, max_new_tokens=3)
        prompts = [[1 + i, 2, 3] for i in range(rows)]
        engine.generate([Request(prompt=p, params=params, chat=False) for p in prompts])

    for rows, recorded in ((1, 1), (2, 2), (1, 2), (4, 3), (1, 3), (2, 4)):
        ask(rows)
        assert len(graphs) == recorded
        assert engine._decode is not None and len(engine._decode.recordings) <= 2


def test_the_calculator_and_parked_rows_change_nothing():
    tool = "[python_start]2+3[python_end][output_start]5[output_end]"
    answers = {"q": f"{tool} so 5", "r": "no tool at all here"}
    for deterministic in (True, False):
        for record in (unrecorded, None):
            engine = scripted_engine(answers, deterministic=deterministic, recorder=record)
            ids = {}
            for name in "qr":
                text = [TOKENIZER.special_id("<|user_start|>"), *TOKENIZER.encode(name)]
                text += [TOKENIZER.special_id("<|user_end|>")]
                text += [TOKENIZER.special_id("<|assistant_start|>")]
                ids[engine.submit(Request(prompt=text, params=SamplingParams(temperature=0)))] = (
                    name
                )
            found = {}
            while not engine.idle:
                for event in engine.step():
                    if event.completion is not None:
                        found[ids[event.request_id]] = event.completion
            assert found["r"].text == "no tool at all here"
            assert found["q"].text.endswith(" so 5") and 0 in found["q"].mask


def test_a_conversation_in_a_slot_that_is_needed_moves_and_is_not_read_again():
    model = random_model(4, sequence_length=200)
    engine = Engine(model, TOKENIZER, slots=4, recorder=unrecorded)
    params = SamplingParams(temperature=0, max_new_tokens=60)

    def prompt(first: int) -> list[int]:
        return [first] + [9] * 40

    short = SamplingParams(temperature=0, max_new_tokens=2)
    running = engine.submit(Request(prompt=prompt(1), params=short, chat=False))
    engine.step()
    kept = engine.submit(Request(prompt=prompt(2), params=params, chat=False))
    completions = {}
    places = []
    while not engine.idle:
        for event in engine.step():
            if event.completion is not None:
                completions[event.request_id] = event.completion
        places.append([slot.index for slot in engine._slots.used])
    assert [1] in places and places[-2] == [0]  # alone, it moved to the first row
    for first, request_id in ((1, running), (2, kept)):
        text = prompt(first) + completions[request_id].tokens
        assert text[41:] == naive_greedy(model, prompt(first), len(text) - 41)[0]
        next_turn = engine.submit(Request(prompt=[*text, 7], params=short, chat=False))
        while not engine.idle:
            for event in engine.step():
                if event.request_id == next_turn and event.completion is not None:
                    assert event.completion.cached_tokens >= len(text) - 1
                    expected = naive_greedy(model, [*text, 7], 2)[0]
                    assert event.completion.tokens == expected[: len(event.completion.tokens)]


def shapes_of(model: GPT, positions: list[int], indices: list[int], slots: int = 200) -> Shape:
    with torch.device("meta"):
        cache = KVCache(
            model.config,
            slots=slots,
            max_len=2000,
            dtype=torch.bfloat16,
            device=torch.device("meta"),
        )
    pairs = zip(indices, positions, strict=True)
    return shape_of([Slot(index, [], cached=place) for index, place in pairs], cache)


def test_rows_and_keys_are_rounded_up_to_few_sizes_and_old_keys_of_windows_left_out():
    assert [row_bucket(n) for n in (1, 2, 3, 5, 17, 64, 97, 129)] == [1, 2, 4, 8, 24, 64, 128, 256]
    wide = random_model(sequence_length=2048)  # windows of 512
    assert shapes_of(wide, [0], [0]) == (1, 0, 128)
    assert shapes_of(wide, [127, 128], [0, 4]) == (8, 0, 256)
    assert shapes_of(wide, [511, 512], [0, 1]) == (2, 0, 768)
    assert shapes_of(wide, [1300, 1030], [0, 1]) == (2, 1024, 1536)
    assert shapes_of(wide, [1300, 500], [0, 1]) == (2, 0, 1536)  # a row needs the first keys
    assert shapes_of(wide, [1999], [0]) == (1, 1792, 2016)  # the memory ends there
    assert shapes_of(wide, [5], [150], slots=160) == (160, 0, 128)
    assert shapes_of(random_model(sequence_length=2048, window_pattern="L"), [1300], [0]).first == 0


def test_a_layer_with_a_window_reads_only_the_keys_around_it(monkeypatch):
    model = random_model(2, sequence_length=700, window=40, depth=4)
    engine = Engine(model, TOKENIZER, slots=2, recorder=unrecorded)
    lengths = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, **options):
        lengths.append(k.shape[2])
        return attention(q, k, v, **options)

    engine.submit(Request(prompt=[1] * 600, params=SamplingParams(max_new_tokens=3), chat=False))
    while engine._slots.used or engine._queue:
        before = [slot.uncached for slot in engine._slots.used]
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        engine.step()
        if before == [1]:
            break
        lengths.clear()
    # Positions from 512 on, of 704: the windows of the first three layers start at 472.
    assert lengths == [704 - 448, 704 - 448, 704 - 448, 704]


def test_nothing_of_a_step_is_computed_on_the_host():
    device = torch.device("meta")  # where tensors have no values, and mix with no others
    config = random_model(window=20).config
    with device:
        model = GPT(config, compute_dtype=torch.bfloat16)
    decoder = model.for_inference(torch.bfloat16)
    decoder.use_operations_of("cuda")
    cache = KVCache(model.config, slots=4, max_len=64, dtype=decoder.compute_dtype, device=device)
    inputs = torch.zeros(5, 2, dtype=torch.int64, device=device)
    view = decode_step.FixedView(cache, Shape(2, 0, 64), inputs)
    with torch.inference_mode():
        hidden = decoder.hidden(inputs[0][:, None], view)
    assert hidden.shape == (2, 1, model.config.width) and hidden.dtype == torch.float32


@pytest.mark.slow
def test_on_a_gpu_a_step_waits_for_nothing_and_is_few_launches():
    """By the operations that torch picks for an H100; computed nowhere."""
    checks = ["decode depth=12 rows=64", "decode depth=24 rows=1", "decode precision=fp32"]
    command = [sys.executable, "benchmarks/fake_cuda", *checks]
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    if done.returncode == 4:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for result, depth, most in zip(found, (12, 24, 4), (278, 536, 130), strict=True):
        assert result["waits"] == []
        assert result["attention"] == {"_scaled_dot_product_efficient_attention": depth}
        assert result["launches"] <= most, result["operations"]
        assert result["head"] <= 5
    assert [result["cache"] for result in found] == [["torch.bfloat16"]] * 2 + [["torch.float32"]]


def test_a_graph_that_cannot_be_recorded_is_done_without_and_said_once(graphs, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    model = random_model(3)
    ask = [
        Request(prompt=[1 + i], params=SamplingParams(temperature=0, max_new_tokens=9), chat=False)
        for i in range(3)
    ]
    expected = [c.tokens for c in Engine(model, TOKENIZER, slots=3).generate(ask)]
    engine = Engine(model, TOKENIZER, slots=3, recorder=recorder())
    message = r"\(RuntimeError: operation not permitted when stream is capturing\); answers stay"
    with pytest.warns(UserWarning, match=message) as seen:
        assert [c.tokens for c in engine.generate(ask)] == expected
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.generate(ask)
    assert not any(graph.launches for graph in graphs)


def test_a_gpu_records_and_a_cpu_computes_exactly_what_is_needed():
    assert decode_step.default_recorder(torch.device("cpu")) is None
    assert isinstance(decode_step.default_recorder(torch.device("cuda:1")), CudaGraphs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_graphs_repeat_the_unrecorded_step(dtype):
    device = torch.device("cuda")
    model = random_model(1, dtype, sequence_length=400, width=128, window=64, depth=4).to(device)
    model.rope = None if model.rope is None else tuple(x.to(device) for x in model.rope)
    params = SamplingParams(temperature=0, max_new_tokens=60)
    requests = [
        Request(prompt=[1 + i] * (1 + 30 * i), params=params, chat=False) for i in range(11)
    ]
    engines = [Engine(model, TOKENIZER, slots=8, recorder=r) for r in (None, unrecorded)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a graph that could not be recorded
        graph, plain = ([c.tokens for c in e.generate(requests)] for e in engines)
        assert graph == plain
        assert engines[0]._decode is not None
        recorded = list(engines[0]._decode.recordings)
        assert len(recorded) >= 3
        other = random_model(2, dtype, sequence_length=400, width=128, window=64, depth=4)
        model.load_state_dict(other.state_dict())
        for engine in engines:
            engine.refresh(model)
        again, plain = ([c.tokens for c in e.generate(requests)] for e in engines)
    assert again == plain != graph
    assert set(recorded) <= set(engines[0]._decode.recordings)
