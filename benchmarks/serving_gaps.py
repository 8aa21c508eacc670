"""How long streams wait between two tokens: equal and distinct prompts, long arrivals, turns.

    python benchmarks/serving_gaps.py                # random weights, depth 4 and 12
    python benchmarks/serving_gaps.py --depths 4     # one of them

Drives the engine as the server does, step by step, without HTTP. Prints for each depth
- gaps: the longest gap of a stream, 95th percentile, of more streams than slots, with equal and
  with distinct prompts, in alternation;
- arrival: the longest gap of 8 streams while a prompt of 1,000 tokens arrives, in normal steps;
- turns: seconds to the first token in the turns of a conversation;
- logprobs: time of a step with 5 alternatives reported, over that without.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decode_speed import CONTEXT, VOCABULARY, word_tokenizer
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.gpt import GPT, GPTConfig
from nanochat.system import device

SLOTS = 16
STREAMS = 64
ROUNDS = 3


def make_engine(depth: int) -> Engine:
    """An engine with random weights."""
    device.keep_memory()
    size = VOCABULARY[depth]
    model = GPT(
        GPTConfig(vocab_size=size, sequence_length=2 * CONTEXT, depth=depth),
        compute_dtype=torch.float32,
    )
    model.init_weights(torch.Generator().manual_seed(0))
    return Engine(model, word_tokenizer(size), slots=SLOTS)


def prompt_of(length: int, seed: int) -> list[int]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 8000, (length,), generator=generator).tolist()


def request(prompt: list[int], count: int, seed: int = 0, logprobs: int | None = None) -> Request:
    """A request for exactly `count` tokens."""
    params = SamplingParams(top_k=50, max_new_tokens=count, seed=seed, logprobs=logprobs)
    return Request(prompt=prompt, params=params, chat=False)


def drain(engine: Engine) -> dict[int, list[float]]:
    """Run all requests; the times of each one's tokens."""
    times: dict[int, list[float]] = {}
    while not engine.idle:
        events = engine.step()
        now_s = time.perf_counter()
        for event in events:
            if event.token is not None:
                times.setdefault(event.request_id, []).append(now_s)
    return times


def gaps(times: list[float]) -> list[float]:
    """Seconds between neighbors."""
    return [b - a for a, b in itertools.pairwise(times)]


def longest_gap_p95(engine: Engine, *, equal: bool, count: int) -> float:
    """Seconds: 95th percentile over streams of each one's longest gap."""
    engine.clear()
    for seed in range(STREAMS):
        # lengths differ, so that slots become free one by one
        engine.submit(request(prompt_of(32, 0 if equal else seed), count + seed % 9, seed))
    longest = sorted(max(gaps(times)) for times in drain(engine).values())
    return longest[int(0.95 * (len(longest) - 1))]


def arrival(engine: Engine, count: int) -> tuple[float, float]:
    """Seconds: a normal step of 8 streams, and the longest gap while a long prompt is read."""
    engine.clear()
    for seed in range(8):
        engine.submit(request(prompt_of(32, seed), count, seed))
    for _ in range(4):
        engine.step()
    normal, longest, arrived, started = [], 0.0, -1, False
    before_s = time.perf_counter()
    for step in range(count):
        if step == 8:
            arrived = engine.submit(request(prompt_of(1000, 99), 2, 99))
        events = engine.step()
        now_s = time.perf_counter()
        started = started or any(event.request_id == arrived for event in events)
        if step < 8:
            normal.append(now_s - before_s)
        elif not started:
            longest = max(longest, now_s - before_s)
        before_s = now_s
        if started:
            break
    assert started, "the prompt was not read before the streams ended"
    return median(normal), longest


def turns(engine: Engine, count: int) -> list[float]:
    """Seconds to the first token in each turn of a conversation; 40 new tokens of text a turn."""
    engine.clear()
    text: list[int] = []
    first_s = []
    for turn in range(10):
        text += prompt_of(40, 500 + turn)
        start_s = time.perf_counter()
        engine.submit(request(text, count, turn))
        answer: list[int] = []
        while not engine.idle:
            for event in engine.step():
                if event.token is not None:
                    if not answer:
                        first_s.append(time.perf_counter() - start_s)
                    answer.append(event.token)
        text += answer
    return first_s


def logprob_cost(engine: Engine, streams: int, count: int) -> float:
    """Time of a step with log-probabilities over that without; medians of steps in alternation."""
    spent: dict[int | None, list[float]] = {None: [], 5: []}
    for _ in range(ROUNDS):
        for logprobs in spent:
            engine.clear()
            for seed in range(streams):
                engine.submit(request(prompt_of(64, 0), count, seed, logprobs))
            spent[logprobs] += gaps(drain(engine)[engine.stats().requests - 1])
    return median(spent[5]) / median(spent[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12])
    args = parser.parse_args()
    for depth in args.depths:
        engine = make_engine(depth)
        count = 24 if depth <= 4 else 8
        print(f"depth {depth}, {SLOTS} slots, {STREAMS} streams", flush=True)
        rounds = [
            [longest_gap_p95(engine, equal=equal, count=count) for equal in (True, False)]
            for _ in range(ROUNDS)
        ]
        equal_s, distinct_s = (median(column) for column in zip(*rounds, strict=True))
        print(
            f"  gaps: equal {1e3 * equal_s:.0f} ms, distinct {1e3 * distinct_s:.0f} ms, "
            f"{equal_s / distinct_s:.2f}x",
            flush=True,
        )
        steps = [arrival(engine, 100) for _ in range(ROUNDS)]
        print("  arrival: " + ", ".join(f"{long_s / step_s:.1f}x" for step_s, long_s in steps))
        first_s = turns(engine, 20)
        print("  turns: " + " ".join(f"{1e3 * t:.0f}" for t in first_s) + " ms", flush=True)
        for streams in (1, 16):
            cost = logprob_cost(engine, streams, 2 * count)
            print(f"  logprobs: {streams} streams {cost:.3f}x", flush=True)


if __name__ == "__main__":
    main()
