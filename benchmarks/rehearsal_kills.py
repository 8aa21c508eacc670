"""How a rehearsal is interrupted: what is killed in which stage, and when."""

import random
from dataclasses import dataclass

from rehearsal_run import STAGES, TRAINING, Attempt
from rehearsal_server import Hub

KINDS = ("one rank", "torchrun", "SIGTERM", "power cut")
# Half of each of these is sent, then everything waits until the kill.
HELD = {
    "tok_train": r"shard_00001\.parquet",
    "base_eval": r"eval_bundle\.zip",
    "mid_train": r"train-00000.*",
}
EVALUATED = {
    "tok_eval": r"^\|? *training text|bytes",
    "base_loss": "training text: ",
    "chat_eval": r"\| .*: .*%",
}
LONGEST_S = 600.0


@dataclass
class Kill:
    """One interruption; step: of training, or None for other moments."""

    stage: str
    what: str
    step: int | None = None
    download: str | None = None
    moment: str = ""
    resumed: str = ""

    def __str__(self) -> str:
        return f"{self.what} in {self.stage}"


def planned(dice: random.Random, *, ranks: int) -> list[Kill]:
    """At least one kill for each stage, in the order of the stages."""
    kinds = [*dice.sample(KINDS, len(KINDS)), *dice.sample(KINDS, len(KINDS))]
    kills = []
    for stage in STAGES:
        single = stage.startswith("tok_") or ranks == 1
        wanted = ("SIGTERM", "power cut") if single else KINDS
        what = next(kind for kind in kinds if kind in wanted)
        kinds.remove(what)
        kinds.append(what)
        if stage in HELD:
            kills.append(Kill(stage, "power cut", download=HELD[stage]))
        if stage in TRAINING or stage not in HELD:
            kills.append(Kill(stage, what))
    return kills


def carry_out(kill: Kill, attempt: Attempt, hub: Hub) -> None:
    raise NotImplementedError
