"""The embedded world: unlimited simple English and held-out questions, generated from a seed.

The world has a few hundred facts (`world`), stories, small talk, spelling, arithmetic and word
problems, told in a few thousand words. Everything is a function of its arguments: no network, and
the same text in every process. The texts are in .txt files beside the modules (see `tables`).

Why a model of a few million parameters can answer here: real text spends most of a model's capacity
on rare words and on facts that it sees once. Here every fact returns hundreds of times in different
wordings, arithmetic is left to the calculator, and `copying` teaches early to look up an answer in
the text before it. The model learns the same things as a large one: facts, formats, tools, and to
say that it does not know.

How items are held out: a hash of the content decides (`core.is_reserved`). A sum, a word or a fact
in one wording is on the same side in every process and every stage, so nothing has to be stored
and no stage can train on what another stage evaluates; new entries move no old ones. Such rows ask
known facts and skills in combinations never seen. Two things are held out entirely, because a
model could pass those rows by recalling surface forms: some question wordings (the row
facts_new_wording) and a fifth of the problem templates (problems_new_templates). `leaks` checks all
this by reading the generated text.
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
