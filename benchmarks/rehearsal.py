"""Rehearse the speedrun at toy size on a CPU: all its stages, all its downloads, many ranks.

bash benchmarks/rehearsal.sh                       # one complete run
bash benchmarks/rehearsal.sh --kills --out FOLDER  # a second one, killed in each stage; keeps both

With --kills, the second run must end with the same bits as the unbroken one: the weights and the
optimizer's state of each training stage, and each result of each evaluation.
"""

import argparse
import contextlib
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import rehearsal_data
from rehearsal_kills import Kill, carry_out, planned
from rehearsal_preset import reduced
from rehearsal_run import STAGES, Attempt, Place, compare, problems
from rehearsal_server import Hub, serve

RUNS = ("unbroken", "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", action="store_true", help="a second run, killed in each stage")
    parser.add_argument("--ranks", type=int, default=8, help="processes that train together [8]")
    parser.add_argument("--no-compile", action="store_true", help="base training too is eager")
    parser.add_argument("--seed", type=int, default=1, help="chooses how each stage is killed")
    parser.add_argument("--out", type=Path, help="kept; default: a temporary folder")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in RUNS:
            shutil.rmtree(out / name, ignore_errors=True)
        preset = reduced(out, ranks=given.ranks, compiled=not given.no_compile)
        start_s = time.monotonic()
        base = rehearse(out / "unbroken", preset, given.ranks, [], cut=False)
        found = problems(base)
        if given.kills:
            kills = planned(random.Random(given.seed), ranks=given.ranks)
            other = rehearse(out / "killed", preset, given.ranks, kills, cut=True)
            found += problems(other)
            equal = {stage: compare(base, other, stage) for stage in STAGES}
            print(table(kills, equal), flush=True)
            found += [f"{stage}: {text}" for stage, text in equal.items() if text != "equal"]
        for line in found:
            print(f"FAILED {line}")
        minutes = (time.monotonic() - start_s) / 60
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_minutes = (used.ru_utime + used.ru_stime) / 60
        kept = f": {base.run / 'report.html'}" if given.out else ""
        print(
            f"rehearsal {'failed' if found else 'passed'} in {minutes:.1f} minutes "
            f"({cpu_minutes:.1f} minutes of one core){kept}"
        )
    return 1 if found else 0


def rehearse(folder: Path, preset: Path, ranks: int, kills: list[Kill], *, cut: bool) -> Place:
    """Run speedrun.sh to its end, after each of the kills once more.

    cut: whether the first transfer of each file ends in the middle.
    """
    hub = Hub(rehearsal_data.hub_files(), rehearsal_data.mirror_files(), cut=cut)
    with serve(hub) as url:
        place = Place(folder, preset, ranks=ranks, hub=url)
        before: Kill | None = None
        for kill in [*kills, None]:
            print(f"== {folder.name}: {f'to be killed: {kill}' if kill else 'to its end'}")
            attempt = Attempt(place, show=not kills)
            if kill is not None:
                carry_out(kill, attempt, hub)
            attempt.finish()
            if before is not None:
                before.resumed = attempt.resumed_at(before.stage)
                if before.file in hub.resumed:
                    before.resumed = f"byte {hub.resumed.pop(before.file):,}"
            before = kill
        asked = sum("/api/" in line for line in hub.requests)
        print(f"{len(hub.requests)} requests to the server, {asked} of them to the hub's API")
    return place


def table(kills: list[Kill], equal: dict[str, str]) -> str:
    """A row for each kill: the stage, what was killed and when, and how it ended."""
    rows = [("stage", "kill", "when", "resumed at", "result")]
    rows += [(k.stage, k.what, k.moment, k.resumed, equal.get(k.stage, "there")) for k in kills]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
