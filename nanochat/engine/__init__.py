"""Batched text generation with a KV cache, sampling on the device, and tools."""

from nanochat.engine.requests import Completion, EngineStats, Event, Request, TokenLogprob
from nanochat.engine.sampling import Grammar, SamplingParams
from nanochat.engine.scheduler import Engine

__all__ = [
    "Completion",
    "Engine",
    "EngineStats",
    "Event",
    "Grammar",
    "Request",
    "SamplingParams",
    "TokenLogprob",
]
