"""What /metrics says: counters and latency histograms in Prometheus' text format.

Owns: the names and the format. They follow vLLM's, with the prefix nanochat_, so that a dashboard
made for one serves the other after replacing the prefix. Does not own: the engine's totals
(EngineStats) or what an HTTP request was (guard).
Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nanochat.engine import EngineStats, Event
from nanochat.system.memory import resident_bytes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Bounds of the buckets in seconds, from a small model on a good GPU to a large one on a laptop.
FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 40)
BETWEEN_TOKENS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
ANSWER_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100, 200)
Labels = Mapping[str, str]


class Histogram:
    """How often a time fell into each bucket; written by one thread, read by any."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def samples(self, name: str, labels: Labels) -> Iterable[str]:
        """Its lines: cumulative counts up to each bound, the sum and the count."""
        reached = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            reached += count
            yield sample(f"{name}_bucket", {**labels, "le": bound}, reached)
        yield sample(f"{name}_sum", labels, self.total)
        yield sample(f"{name}_count", labels, reached)


class AnswerClock:
    """How far one answer has come, and when."""

    def __init__(self) -> None:
        self.opened_s = self.last_token_s = time.monotonic()
        self.tokens = 0


class AnswerMetrics:
    """Latencies of one model's answers, and why they ended."""

    def __init__(self) -> None:
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.between_tokens_s = Histogram(BETWEEN_TOKENS_S)
        self.answer_s = Histogram(ANSWER_S)
        self.reasons: Counter[str] = Counter()

    def count(self, clock: AnswerClock, event: Event) -> None:
        """Count an event of the answer that a clock belongs to."""
        now_s = time.monotonic()
        if event.token is not None:
            if clock.tokens:
                self.between_tokens_s.add(now_s - clock.last_token_s)
            else:
                self.first_token_s.add(now_s - clock.opened_s)
            clock.tokens += 1
            clock.last_token_s = now_s
        if event.completion is not None:
            self.answer_s.add(now_s - clock.opened_s)
            self.reasons[event.completion.finish_reason] += 1


def sample(name: str, labels: Labels, value: float) -> str:
    """One line: a name, its labels and a value."""
    texts = [f'{key}="{_escaped(text)}"' for key, text in labels.items()]
    return f"{name}{{{','.join(texts)}}} {value}" if texts else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(name: str, kind: str, help: str, samples: Iterable[str]) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *samples]


def render(
    stats: Mapping[str, EngineStats],
    answers: Mapping[str, AnswerMetrics],
    visits: Mapping[tuple[str, int], int],
) -> str:
    """The text of /metrics.

    stats, answers: by the model's id. visits: HTTP requests by path and status.
    """
    simple = [
        ("num_requests_running", "gauge", "answers being generated", lambda s: s.running),
        ("num_requests_waiting", "gauge", "answers waiting for a slot", lambda s: s.waiting),
        ("kv_cache_usage_perc", "gauge", "share of slots in use, 0 to 1", _cache_use),
        ("prompt_tokens_total", "counter", "prompt tokens read", lambda s: s.prompt_tokens),
        ("generation_tokens_total", "counter", "tokens written", lambda s: s.generated_tokens),
        ("prefix_cache_queries_total", "counter", "prompt tokens looked up in the cache",
         lambda s: s.prompt_tokens),
        ("prefix_cache_hits_total", "counter", "prompt tokens found in the cache",
         lambda s: s.cached_prefix_tokens),
    ]  # fmt: skip
    lines: list[str] = []
    for name, kind, help, value in simple:
        full = f"nanochat_{name}"
        values = [sample(full, {"model_name": m}, value(found)) for m, found in stats.items()]
        lines += _family(full, kind, help, values)
    for name, help, field in (
        ("time_to_first_token_seconds", "from a request to its first token", "first_token_s"),
        ("inter_token_latency_seconds", "between two tokens of an answer", "between_tokens_s"),
        ("e2e_request_latency_seconds", "from a request to its last token", "answer_s"),
    ):
        full = f"nanochat_{name}"
        rows = [r for m, a in answers.items() for r in getattr(a, field).samples(full, _of(m))]
        lines += _family(full, "histogram", help, rows)
    name = "nanochat_request_success_total"
    ended = [(m, reason, n) for m, a in answers.items() for reason, n in a.reasons.copy().items()]
    rows = [sample(name, {**_of(m), "finished_reason": r}, n) for m, r, n in ended]
    lines += _family(name, "counter", "answers by why they ended", rows)
    name = "nanochat_http_requests_total"
    rows = [sample(name, {"path": p, "status": str(s)}, n) for (p, s), n in visits.items()]
    lines += _family(name, "counter", "HTTP requests by path and status; 499: client left", rows)
    name = "process_resident_memory_bytes"
    lines += _family(name, "gauge", "memory of the server", [sample(name, {}, resident_bytes())])
    return "\n".join(lines) + "\n"


def _of(model: str) -> Labels:
    return {"model_name": model}


def _cache_use(stats: EngineStats) -> float:
    return stats.slots_in_use / stats.slots
