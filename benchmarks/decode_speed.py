"""Tokens per second of generation, ours and others', in alternation on the same machine.

Random weights, one prompt for all streams, top-k 50. Each engine runs in a process of its own that
waits while another one is timed; rounds alternate, so that a slow minute of the machine slows all.

    python benchmarks/decode_speed.py --nanochat ~/nanochat --depths 4 12 --streams 1 16 64

--nanochat: a checkout of karpathy/nanochat. --llama-bench: llama.cpp's program of that name and a
model (`llama-bench model.gguf`), measured by itself. transformers' generate on a Llama of equal
size joins in where the package is installed. Figures are medians over the rounds.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a child that runs another engine imports another package of this name
    from nanochat.tokenizer import BpeTokenizer

ROOT = Path(__file__).parent.parent
PROMPT_TOKENS = 448
CONTEXT = 1024
TOP_K = 50
VOCABULARY = {4: 8192, 12: 32768}  # by depth
NEW_TOKENS = {4: 48, 12: 12}

# Answers one round: (prompt, streams, new tokens) -> seconds to the first token, tokens a second.
Round = Callable[[list[int], int, int], tuple[float, float]]


def timed(steps: Iterator[int]) -> tuple[float, float]:
    """Seconds to the first of steps, and tokens/s after it; a step gives its number of tokens."""
    start_s = time.perf_counter()
    next(steps)
    first_s = time.perf_counter()
    count = sum(steps)
    return first_s - start_s, count / (time.perf_counter() - first_s)


def word_tokenizer(size: int) -> "BpeTokenizer":
    """A tokenizer with that many tokens: our bytes and made-up words."""
    from nanochat.tokenizer import SPECIAL_TOKENS, BpeTokenizer

    letters = [chr(97 + i) for i in range(26)]
    words = [
        (a + b + c + d).encode() for a in "wxyz" for b in letters for c in letters for d in letters
    ]
    single = [bytes([i]) for i in range(256)]
    return BpeTokenizer([*single, *words][: size - len(SPECIAL_TOKENS)])


def ours(depth: int, dtype: str) -> Round:
    """This project's engine."""
    from nanochat.engine import Engine, Request, SamplingParams
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.system import device

    device.keep_memory()
    size = VOCABULARY[depth]
    config = GPTConfig(vocab_size=size, sequence_length=CONTEXT, depth=depth)
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    # No longer than needed: the caches of three such engines at depth 12 would fill 16 GB.
    length = PROMPT_TOKENS + max(NEW_TOKENS.values()) + 1
    kind = getattr(torch, dtype)
    engine = Engine(model, word_tokenizer(size), slots=64, max_len=length, dtype=kind)
    del model

    def round_(prompt: list[int], streams: int, count: int) -> tuple[float, float]:
        def steps() -> Iterator[int]:
            engine.clear()  # every round reads the prompt again, as the other engines do
            for seed in range(streams):
                params = SamplingParams(top_k=TOP_K, max_new_tokens=count, seed=seed)
                engine.submit(Request(prompt=prompt, params=params, chat=False))
            while not engine.idle:
                if made := sum(event.token is not None for event in engine.step()):
                    yield made

        return timed(steps())

    return round_


def nanochat(depth: int, dtype: str) -> Round:
    """karpathy/nanochat's engine, from the checkout on sys.path."""
    from nanochat.engine import Engine
    from nanochat.gpt import GPT, GPTConfig

    class Tokenizer:
        """Special tokens that are never sampled, so that no stream ends early."""

        def encode_special(self, text: str) -> int:
            return -1

        def get_bos_token_id(self) -> int:
            return -1

    width = -(-64 * depth // 128) * 128 if depth >= 8 else 64 * depth
    heads = width // (128 if depth >= 8 else 64)
    config = GPTConfig(
        sequence_len=CONTEXT,
        vocab_size=VOCABULARY[depth],
        n_layer=depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    engine = Engine(model.eval(), Tokenizer())

    def round_(prompt: list[int], streams: int, count: int) -> tuple[float, float]:
        steps = engine.generate(prompt, num_samples=streams, max_tokens=count, top_k=TOP_K)
        return timed(len(tokens) for tokens, _ in steps)

    return round_


def transformers(depth: int, dtype: str) -> Round:
    """transformers' generate on a Llama with as many parameters in its layers, static cache."""
    from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found]

    width = 64 * depth
    heads = width // (128 if depth >= 8 else 64)
    config = LlamaConfig(
        vocab_size=VOCABULARY[depth],
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()

    def round_(prompt: list[int], streams: int, count: int) -> tuple[float, float]:
        ids = torch.tensor([prompt] * streams)

        def run(new: int) -> float:
            start_s = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=TOP_K,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=0,
            )
            return time.perf_counter() - start_s

        first_s = run(1)
        return first_s, (count - 1) * streams / (run(count) - first_s)

    return round_


def machine() -> str:
    """What the machine can do: bytes read and float32 operations per second, best of some tries."""
    data = torch.ones(1 << 26)  # 256 MB
    a, b = torch.ones(1024, 1024), torch.ones(4096, 1024)
    best = {"read": math.inf, "multiply": math.inf}
    for _ in range(8):
        start_s = time.perf_counter()
        data.sum()
        read_s = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best["multiply"] = min(best["multiply"], time.perf_counter() - read_s)
        best["read"] = min(best["read"], read_s - start_s)
    reads, operations = data.nbytes / best["read"], 2 * 1024**2 * 4096 / best["multiply"]
    rates = f"reads {reads / 1e9:.0f} GB/s, multiplies {operations / 1e9:.0f} GFLOP/s"
    return f"machine: {rates} in float32"


def matrix_weights(depth: int) -> int:
    """Weights that every token is multiplied by."""
    width = 64 * depth
    return depth * 12 * width**2 + VOCABULARY[depth] * width


ENGINES = {"ours": ours, "nanochat": nanochat, "transformers": transformers}


def serve(name: str, depth: int, dtype: str) -> None:
    """A child process: one JSON line (streams, tokens) in, one (first_s, tokens_per_s) out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no answer
    round_ = ENGINES[name](depth, dtype)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 8000, (PROMPT_TOKENS,), generator=generator).tolist()
    for line in sys.stdin:
        streams, count = json.loads(line)
        print(json.dumps(round_(prompt, streams, count)), file=answers, flush=True)


class Child:
    """An engine in a process of its own."""

    def __init__(self, name: str, depth: int, dtype: str, path: Path) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(path), "NANOCHAT_DTYPE": "float32"}
        command = [sys.executable, __file__, "--serve", name, "--depths", str(depth)]
        self.process = subprocess.Popen(
            [*command, "--dtypes", dtype],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if name == "nanochat" else None,
            text=True,
        )

    def round(self, streams: int, count: int) -> tuple[float, float]:
        """Seconds to the first token, and tokens/s after it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: said below
            print(json.dumps([streams, count]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        first_s, rate = json.loads(answer)
        return first_s, rate

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(children: dict[str, Child], depth: int, streams: int, rounds: int) -> None:
    """Print the medians of alternating rounds, and the ratio to nanochat's."""
    count = NEW_TOKENS[depth]
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in children}
    for child in children.values():
        child.round(streams, 3)
    for _ in range(rounds):
        for name, child in children.items():
            results[name].append(child.round(streams, count))
    base = [rate for _, rate in results.get("nanochat", [])]
    for name, pairs in results.items():
        rates = [rate for _, rate in pairs]
        text = f"{depth:>5} {streams:>7} {name:<14} {median(rates):>9,.1f} tokens/s"
        text += f"  first {1e3 * median(first for first, _ in pairs):>7,.0f} ms"
        if name.startswith("ours"):
            size = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[name.split()[1]]
            weights = matrix_weights(depth) * median(rates)
            text += (
                f"  {size * weights / streams / 1e9:>4.0f} GB/s  {2 * weights / 1e9:>4.0f} GFLOP/s"
            )
        if base and name != "nanochat":
            ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
            text += f"  x{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(text, flush=True)


def main() -> None:
    """Parse the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat")
    parser.add_argument("--llama-bench", nargs=2, metavar=("PROGRAM", "MODEL"))
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12], choices=VOCABULARY)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.depths[0], args.dtypes[0])
        return
    print(machine(), flush=True)
    for depth in args.depths:
        children = {f"ours {d}": Child("ours", depth, d, ROOT) for d in args.dtypes}
        if args.nanochat is not None:
            children["nanochat"] = Child("nanochat", depth, "float32", args.nanochat)
        if find_spec("transformers") is not None:
            children["transformers"] = Child("transformers", depth, "float32", ROOT)
        for streams in args.streams:
            compare(children, depth, streams, args.rounds)
        for child in children.values():
            child.close()
    if args.llama_bench:
        program, model = args.llama_bench
        subprocess.run([program, "-m", model, "-p", str(PROMPT_TOKENS), "-n", "64"], check=True)


if __name__ == "__main__":
    main()
