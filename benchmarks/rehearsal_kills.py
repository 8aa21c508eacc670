"""How a rehearsal is interrupted: what is killed in which stage, and when."""

import os
import random
import signal
import time
from dataclasses import dataclass

from faults import is_alive, kill_all
from rehearsal_run import STAGES, TRAINING, Attempt, step_of
from rehearsal_server import Hub

KINDS = ("one rank", "torchrun", "SIGTERM", "power cut")  # SIGKILL where no signal is named
# Half of each of these is sent, then the server waits until everything has been killed.
HELD = {
    "tok_train": "shard_00001.parquet",
    "base_eval": "eval_bundle.zip",
    "mid_train": "data/train-00000-of-00001.parquet",
}
LONGEST_S = 600.0


@dataclass
class Kill:
    """One interruption, and what came of it.

    step: of training, which must have been reached; file: whose download must have come halfway;
    else it happens delay_s after the stage has loaded what it works on.
    """

    stage: str
    what: str
    step: int | None = None
    file: str | None = None
    delay_s: float = 0.0
    victim: float = 0.0  # which of the ranks, as a share of them
    moment: str = ""
    resumed: str = ""

    def __str__(self) -> str:
        return f"{self.what} in {self.stage}"


def planned(dice: random.Random, *, ranks: int) -> list[Kill]:
    """At least one kill for each stage, in their order; every kind if there are ranks."""
    kinds = dice.sample(KINDS, len(KINDS))
    kills = []
    for stage in STAGES:
        if stage in HELD:
            kills.append(Kill(stage, "power cut", file=HELD[stage]))
        if stage == "tok_train":
            continue
        usable = ("SIGTERM", "power cut") if stage == "tok_eval" or ranks == 1 else KINDS
        what = next(kind for kind in kinds if kind in usable)
        kinds.remove(what)
        kinds.append(what)
        kill = Kill(stage, what, delay_s=dice.uniform(0, 0.5), victim=dice.random())
        if stage in TRAINING:
            kill.step = dice.randint(3, 4) if stage == "chat_rl" else dice.randint(7, 11)
        kills.append(kill)
    return [*kills, Kill("report", "power cut")]


def carry_out(kill: Kill, attempt: Attempt, hub: Hub) -> None:
    """Wait for the moment, then kill. Raises: SystemExit if the run ends before."""
    if kill.file is not None:
        hub.hold(kill.file)
    start_s = time.monotonic()
    while not _is_time(kill, attempt, hub):
        if attempt.process.poll() is not None:
            raise SystemExit(f"the run ended before: {kill}\n" + "\n".join(attempt.lines[-30:]))
        if time.monotonic() - start_s > LONGEST_S:
            raise SystemExit(f"its moment did not come: {kill}\n" + "\n".join(attempt.lines[-30:]))
        time.sleep(0.02)
    time.sleep(kill.delay_s)
    kill.moment = _moment(kill, attempt)
    workers = attempt.workers()
    if kill.what == "power cut":
        kill_all(attempt.process)
    elif kill.what == "SIGTERM":
        os.kill(attempt.process.pid, signal.SIGTERM)
    elif kill.what == "torchrun":
        os.kill(attempt.launcher() or attempt.process.pid, signal.SIGKILL)
    else:
        os.kill(workers[int(kill.victim * len(workers))], signal.SIGKILL)
    attempt.finish()
    hub.release()
    left = [pid for pid in workers if is_alive(pid)]
    if left:
        kill.moment += f"; {len(left)} ranks outlived it"


def _is_time(kill: Kill, attempt: Attempt, hub: Hub) -> bool:
    if kill.file is not None:
        return hub.held.is_set()
    if kill.stage == "report":
        return attempt.is_running("scripts.report")
    if kill.stage == "tok_eval":
        return attempt.is_running("scripts.tok_eval")
    if kill.what in ("one rank", "torchrun") and not attempt.workers():
        return False
    if kill.step is not None:
        return step_of(attempt.place, kill.stage) >= kill.step
    return attempt.saw(rf"^{kill.stage} of /")  # its model is loaded


def _moment(kill: Kill, attempt: Attempt) -> str:
    if kill.file is not None:
        return f"half of {kill.file.rpartition('/')[2]}"
    if kill.step is not None:
        return f"step {step_of(attempt.place, kill.stage)}"
    return "at work"
