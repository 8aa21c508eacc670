"""Hold a finished run's accuracies against the floors in floors.json, and its memory.

floors.json: {chat stage: {task: the least accuracy that passes}}, of the rows of chat_eval.
"""

import json
import sys
from pathlib import Path

MEMORY_LIMIT_BYTES = 8e9  # twice what the pocket run may take


def main(run_dir: Path) -> int:
    """Print every floor with the figure it met; return 1 if one was missed."""
    floors = json.loads((Path(__file__).parent / "floors.json").read_text(encoding="utf-8"))
    sections = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(run_dir.glob("*/result.json"))
    }
    rows = sections["chat_eval"]["results"]
    found = {(row.get("stage"), row["name"]): row["value"] for row in rows}
    missed = 0
    for stage, tasks in floors.items():
        for task, floor in tasks.items():
            value = found.get((stage, task))
            good = value is not None and value >= floor
            missed += not good
            print(f"{'ok    ' if good else 'MISSED'} {stage} {task}: {value} (floor {floor})")
    for stage, section in sections.items():
        used = section.get("peak_memory_bytes") or 0
        good = used <= MEMORY_LIMIT_BYTES
        missed += not good
        print(f"{'ok    ' if good else 'MISSED'} {stage} memory: {used / 1e9:.2f} GB")
    print(f"{missed} missed" if missed else "all held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
