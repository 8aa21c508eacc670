"""Batched text generation with a KV cache, sampling on the device, and tools."""

from nanochat.engine.requests import Completion, Event, Request
from nanochat.engine.sampling import SamplingParams
from nanochat.engine.scheduler import Engine

__all__ = ["Completion", "Engine", "Event", "Request", "SamplingParams"]
