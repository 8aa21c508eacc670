"""The embedded world: unlimited small-vocabulary English with held-out questions, from a seed.

Everything here is a function of its arguments: no file, no network, the same in every process.
"""

from nanochat.pocket.bundle import write_core_bundle
from nanochat.pocket.core import is_reserved
from nanochat.pocket.evaluation import (
    EVAL_ROWS,
    EvalItem,
    answers_alike,
    evaluation,
    final_number,
    grade,
)
from nanochat.pocket.leaks import find_leaks
from nanochat.pocket.mixtures import base_documents, conversations
from nanochat.pocket.prompts import hand_prompts, scripted_dialogues

__all__ = [
    "EVAL_ROWS",
    "EvalItem",
    "answers_alike",
    "base_documents",
    "conversations",
    "evaluation",
    "final_number",
    "find_leaks",
    "grade",
    "hand_prompts",
    "is_reserved",
    "scripted_dialogues",
    "write_core_bundle",
]
