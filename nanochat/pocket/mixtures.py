"""The mixtures: how much of each kind of text base training, mid-training, SFT and RL see.

To change a mixture, change the tables of weights below. A weight is a share of documents or
conversations, not of tokens.
"""

import random
from collections.abc import Callable, Iterator

from nanochat.pocket import choice, copying, knowledge, letters, numbers, problems, stories, talk
from nanochat.pocket.core import Conversation, Turn, Weighted, as_text, conversation, make_rng, pick
from nanochat.system.errors import ConfigError

Maker = Callable[[random.Random], Turn | list[Turn]]


def _fact(rng: random.Random) -> Turn:
    return knowledge.fact_turn(rng, knowledge.any_fact(rng))


def _choice(rng: random.Random) -> Turn:
    return choice.choice_turn(rng, choice.draw_choice(rng))


def _choice_letter(rng: random.Random) -> Turn:
    return choice.choice_turn(rng, choice.draw_choice(rng), letter_only=True)


def _probe(rng: random.Random) -> Turn:
    return choice.probe_turn(rng, copying.some_values(rng, len(choice.LETTERS)))


def _spelling(rng: random.Random) -> Turn:
    return letters.spelling_turn(rng, letters.word_to_spell(rng))


def _counting(rng: random.Random) -> Turn:
    return letters.counting_turn(rng, letters.word_to_spell(rng))


def _length(rng: random.Random) -> Turn:
    return letters.length_turn(rng, letters.word_to_spell(rng))


def _sum(rng: random.Random) -> Turn:
    return numbers.sum_turn(rng, numbers.draw_sum(rng))


def _problem(rng: random.Random) -> Turn:
    return problems.problem_turn(rng, problems.draw_problem(rng))


def _rl_problem(rng: random.Random) -> Turn:
    drawn = problems.draw_problem(rng, composed_share=RL_COMPOSED_SHARE)
    return problems.problem_turn(rng, drawn)


def _memory(rng: random.Random) -> list[Turn]:
    told, asked = talk.memory_turns(rng)
    between = _draw(rng, _BETWEEN) if rng.random() < 0.4 else []
    return [told, *between, asked]


_BETWEEN: Weighted[Maker] = Weighted(
    {_fact: 0.6, talk.small_talk_turn: 0.2, knowledge.unknown_turn: 0.2}
)

# Weights of the kinds of questions, by stage.
TURNS: dict[str, dict[Maker, float]] = {
    "base": {
        _fact: 0.26,
        _choice: 0.19,
        _probe: 0.09,
        knowledge.unknown_turn: 0.09,
        talk.follow_up_turns: 0.02,
        _sum: 0.05,
        numbers.compare_turn: 0.04,
        _problem: 0.13,
        _spelling: 0.06,
        _counting: 0.05,
        talk.small_talk_turn: 0.02,
        _memory: 0.01,
    },
    "mid": {
        _fact: 0.21,
        _choice: 0.16,
        _probe: 0.025,
        _choice_letter: 0.02,
        knowledge.unknown_turn: 0.105,
        talk.outside_turn: 0.01,
        knowledge.about_turn: 0.005,
        talk.follow_up_turns: 0.02,
        _sum: 0.065,
        numbers.compare_turn: 0.045,
        _problem: 0.185,
        _spelling: 0.105,
        _counting: 0.06,
        _length: 0.01,
        talk.small_talk_turn: 0.03,
        _memory: 0.02,
        stories.story_turns: 0.01,
        stories.tell_turn: 0.01,
    },
    "sft": {
        _fact: 0.19,
        _choice: 0.13,
        _choice_letter: 0.02,
        knowledge.unknown_turn: 0.105,
        talk.outside_turn: 0.02,
        knowledge.about_turn: 0.01,
        talk.follow_up_turns: 0.03,
        _sum: 0.06,
        numbers.compare_turn: 0.05,
        _problem: 0.185,
        _spelling: 0.08,
        _counting: 0.05,
        _length: 0.01,
        talk.small_talk_turn: 0.06,
        _memory: 0.02,
        stories.story_turns: 0.015,
        stories.tell_turn: 0.015,
    },
    # RL draws from questions with one right final number or word, so that a reward needs no judge.
    # Problems have small numbers and no results below 0: RL on these alone forgets the rest.
    "rl": {
        _rl_problem: 0.80,
        numbers.compare_turn: 0.12,
        _sum: 0.08,
    },
}
_TURNS = {name: Weighted(weights) for name, weights in TURNS.items()}

RL_COMPOSED_SHARE = 0.25  # of RL's problems; lower than in SFT, as RL is to improve on templates
SEVERAL_SHARE = 0.12  # of the conversations move from one kind of question to another
SYSTEM_SHARE = 0.02
SYSTEMS = ("You are nanochat.", "You are a helpful assistant.", "Answer in short sentences.")

SPEAKERS = (
    ("Q: ", "A: "),
    ("User: ", "Bot: "),
    ("Question: ", "Answer: "),
    ("Human: ", "Nanochat: "),
)


def _draw(rng: random.Random, makers: Weighted[Maker]) -> list[Turn]:
    """The turns of one kind, drawn by its weight."""
    return _made(rng, makers.draw(rng))


def _made(rng: random.Random, maker: Maker) -> list[Turn]:
    made = maker(rng)
    return [made] if isinstance(made, Turn) else made


def plain_dialogue(rng: random.Random) -> str:
    """Base text: questions and answers as plain text, of one kind or of several."""
    asks, replies = pick(rng, SPEAKERS)
    maker = _TURNS["base"].draw(rng)
    mixed = rng.random() < 0.3
    turns: list[Turn] = []
    while len(turns) < 3:
        turns += _draw(rng, _TURNS["base"]) if mixed else _made(rng, maker)
    return "\n".join(f"{asks}{turn.user}\n{replies}{as_text(turn.reply)}" for turn in turns)


# Weights of the kinds of base documents.
DOCUMENTS: dict[Callable[[random.Random], str], float] = {
    copying.copying_document: 0.25,
    plain_dialogue: 0.31,
    knowledge.statements: 0.21,
    letters.spelled_document: 0.15,
    letters.letters_document: 0.01,
    numbers.sizes_document: 0.01,
    stories.story_document: 0.06,
}
_DOCUMENTS = Weighted(DOCUMENTS)


def base_documents(split: str, seed: int) -> Iterator[str]:
    """Unlimited base text, one document at a time; split: "train" or "val".

    Raises: ConfigError for any other split.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"unknown split {split!r} of pocket text; use train or val")
    rng = make_rng("base", split, seed)
    while True:
        yield _DOCUMENTS.draw(rng)(rng)


def conversations(stage: str, seed: int) -> Iterator[Conversation]:
    """Unlimited conversations; stage: "mid", "sft" or "rl" (only those with checkable answers).

    Raises: ConfigError for any other stage.
    """
    if stage not in ("mid", "sft", "rl"):
        raise ConfigError(f"unknown stage {stage!r} of pocket conversations; use mid, sft or rl")
    rng = make_rng("conversations", stage, seed)
    makers = _TURNS[stage]
    while True:
        turns = _draw(rng, makers)
        if stage == "rl":
            yield conversation(turns)
            continue
        if rng.random() < SEVERAL_SHARE:
            turns = [*turns, *_draw(rng, makers), talk.small_talk_turn(rng)]
        system = pick(rng, SYSTEMS) if rng.random() < SYSTEM_SHARE else None
        yield conversation(turns, system)
