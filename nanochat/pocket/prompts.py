"""Prompts and dialogues written by hand; the report shows the replies to them."""

from nanochat.pocket.tables import lines, rows


def hand_prompts() -> tuple[str, ...]:
    """Fifty prompts as a curious person types them."""
    return lines("prompts", "prompts")


def scripted_dialogues() -> tuple[tuple[str, ...], ...]:
    """Ten dialogues of several turns: what the user says in each."""
    return rows("prompts", "dialogues")
