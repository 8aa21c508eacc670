"""A time limit for compiling grammars: those that may take forever are first tried elsewhere.

llguidance combines patterns that apply to the same text into one automaton, whose size can double
with each of them; its limits are on other things, and a thread cannot be stopped. A process can.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

from nanochat.server.service import Busy

TRIAL_S = 5.0
AT_ONCE = 2  # trials; they must not take all threads that prepare requests
LONG = 20_000  # characters
# What combines schemas with each other. Ordinary schemas with "$ref" take a moment longer, once.
COMBINING = ('"allOf"', '"patternProperties"', '"$ref"')
TRIAL = """
import sys
from llguidance import LLMatcher
LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(sys.stdin.read()))
"""
_trials = threading.BoundedSemaphore(AT_ONCE)


def compiles_in_time(lark: str, given: str) -> bool:
    """Whether a grammar compiles, or is refused, within TRIAL_S.

    given: the schemas in it as the client sent them, JSON.
    Raises: Busy if other grammars are being tried.
    """
    if len(lark) < LONG and not any(key in given for key in COMBINING):
        return True
    if not _trials.acquire(blocking=False):
        raise Busy("other formats are being compiled")
    try:
        return _tried(lark)
    finally:
        _trials.release()


@functools.lru_cache(maxsize=64)
def _tried(lark: str) -> bool:
    # -I: nothing of the folder that the server was started in is imported.
    command = [sys.executable, "-I", "-c", TRIAL]
    try:
        subprocess.run(command, input=lark.encode(), capture_output=True, timeout=TRIAL_S)
    except subprocess.TimeoutExpired:
        return False
    return True
