"""Small stand-ins for everything that a run downloads, in the layouts of the originals.

Owns what the rehearsal's server serves: files by their path on the hub or in the mirror. All of it
follows from seeds, so that two rehearsals train on the same text.
"""

import io
import itertools
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nanochat import pocket
from nanochat.data.hub import HUB_SHARDS
from nanochat.data.shards import shard_name
from nanochat.evaluation.core import CORE_TASKS

Rows = list[dict[str, Any]]
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ida Jon Kim Leo Mia Ned Ola Pia".split()
THINGS = "apples books cards coins eggs keys lamps maps nuts pens rings shells stamps toys".split()
ITEMS_PER_CORE_TASK = 12
TRAIN_SHARDS, SHARD_CHARACTERS = 8, 100_000


def text_shard(seed: int, characters: int = SHARD_CHARACTERS) -> bytes:
    """A shard of base text: parquet, zstd, one column `text`, many small row groups."""
    texts, made = [], 0
    for text in pocket.base_documents("train", 1000 + seed):
        texts.append(text)
        made += len(text)
        if made >= characters:
            break
    file = io.BytesIO()
    table = pa.table({"text": pa.array(texts, pa.string())})
    pq.write_table(table, file, compression="zstd", row_group_size=64)
    return file.getvalue()


def hub_files() -> dict[str, dict[str, bytes]]:
    """The files of each dataset repository, by their paths in it."""
    source = HUB_SHARDS["climbmix"]
    indices = [*range(TRAIN_SHARDS), source.count - 1]
    shards = {shard_name(i): text_shard(i) for i in indices}
    return {
        source.repository: shards,
        "HuggingFaceTB/smol-smoltalk": _repository(
            {"default": {"train": _talks(600, 1), "test": _talks(60, 2)}}, folder="data"
        ),
        "cais/mmlu": _repository(
            {
                "all": {
                    "test": [_choice(i) for i in range(1000, 1060)],
                    "validation": [_choice(i) for i in range(1060, 1080)],
                    "dev": [_choice(i) for i in range(1080, 1090)],
                },
                "auxiliary_train": {"train": [{"train": _choice(i)} for i in range(300)]},
            }
        ),
        "allenai/ai2_arc": _repository(
            {
                config: {
                    split: [_arc(i) for i in range(start, start + count)]
                    for split, start, count in (
                        ("train", first, 120),
                        ("test", first + 200, 30),
                        ("validation", first + 300, 20),
                    )
                }
                for config, first in (("ARC-Challenge", 2000), ("ARC-Easy", 3000))
            }
        ),
        "openai/gsm8k": _repository(
            {
                "main": {
                    "train": [_problem(i) for i in range(1000)],
                    "test": [_problem(i) for i in range(9000, 9040)],
                }
            }
        ),
        "openai/openai_humaneval": _repository(
            {"openai_humaneval": {"test": [_function(i) for i in range(12)]}}
        ),
    }


def mirror_files() -> dict[str, bytes]:
    """The files outside the hub: CORE's bundle and the list of words."""
    return {"eval_bundle.zip": _core_bundle(), "words_alpha.txt": _words()}


def _repository(
    configs: dict[str, dict[str, Rows]], *, folder: str | None = None
) -> dict[str, bytes]:
    """Parquet files under a folder for each config, and a README whose header names them."""
    files: dict[str, bytes] = {}
    listed = []
    for config, splits in configs.items():
        data_files = []
        for split, rows in splits.items():
            path = f"{folder or config}/{split}-00000-of-00001.parquet"
            file = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), file)
            files[path] = file.getvalue()
            data_files.append({"split": split, "path": f"{folder or config}/{split}-*"})
        listed.append({"config_name": config, "data_files": data_files})
    header = yaml.safe_dump({"license": "mit", "configs": listed}, sort_keys=False)
    files["README.md"] = f"---\n{header}---\n\n# A small stand-in\n".encode()
    return files


def _talks(count: int, seed: int) -> Rows:
    """Conversations of plain text, as SmolTalk's are."""
    plain = (
        {"messages": [{"content": m["content"], "role": m["role"]} for m in c["messages"]]}
        for c in pocket.conversations("mid", 100 + seed)
        if all(isinstance(m["content"], str) for m in c["messages"])
    )
    return [{**row, "source": "rehearsal"} for row in itertools.islice(plain, count)]


def _choice(number: int) -> dict[str, Any]:
    dice = random.Random(f"choice {number}")
    options = dice.sample(THINGS, 4)
    answer = dice.randrange(4)
    return {
        "question": f"{dice.choice(NAMES)} has {dice.randint(2, 9)} {options[answer]} and nothing "
        "else. What is in the bag?",
        "subject": "miscellaneous",
        "choices": options,
        "answer": answer,
    }


def _arc(number: int) -> dict[str, Any]:
    """A science question; as in the original, a few have digits as labels, or three options."""
    found, dice = _choice(number), random.Random(f"arc {number}")
    count = 3 if number % 20 == 0 and found["answer"] < 3 else 4
    labels = "1234" if number % 15 == 0 else "ABCD"
    return {
        "id": f"Rehearsal_{number}_{dice.randrange(100)}",
        "question": found["question"],
        "choices": {"text": found["choices"][:count], "label": list(labels[:count])},
        "answerKey": labels[found["answer"]],
    }


def _problem(number: int) -> dict[str, Any]:
    """A word problem whose solution has the original's calculator spans.

    Its few answers are within a tiny model's reach, so that some rewards are not 0.
    """
    dice = random.Random(f"problem {number}")
    name, thing = dice.choice(NAMES), dice.choice(THINGS)
    a, b = dice.randint(1, 2), dice.randint(1, 2)
    return {
        "question": f"{name} has {a} {thing} and gets {b} more. How many {thing} are there?",
        "answer": f"{a}+{b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}",
    }


def _function(number: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f"def add_{number}(x: int) -> int:\n"
        f'    """Return x plus {number}.\n    >>> add_{number}(1)\n    {number + 1}\n    """\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": "METADATA = {}\n\n\ndef check(candidate):\n"
        f"    assert candidate(1) == {number + 1}\n    assert candidate(-5) == {number - 5}\n",
        "entry_point": f"add_{number}",
    }


def _words() -> bytes:
    """Pronounceable words, one per line, with the original's line ends."""
    syllables = [c + v for c in "bcdfglmnprst" for v in "aeiou"]
    words = sorted("".join(parts) for parts in itertools.product(syllables[::3], repeat=3))
    return "".join(f"{word}\r\n" for word in words).encode()


def _core_bundle() -> bytes:
    """All tasks of CORE by name, each with a few items of its kind, in the original's layout."""
    tasks, baselines, data = [], ["Eval Task,Task Category,Random baseline"], {}
    makers = itertools.cycle(_kinds())
    for number, name in enumerate(sorted(CORE_TASKS)):
        kind, baseline, item = next(makers)
        uri = f"rehearsal/{name}.jsonl"
        rows = [item(1000 * number + i) for i in range(ITEMS_PER_CORE_TASK)]
        data[uri] = "".join(json.dumps(row) + "\n" for row in rows)
        entry = {"label": name, "dataset_uri": uri, "num_fewshot": [number % 3]}
        tasks.append({**entry, "icl_task_type": kind, "continuation_delimiter": " "})
        baselines.append(f"{name},rehearsal,{baseline}")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eval_bundle/core.yaml", yaml.safe_dump({"icl_tasks": tasks}))
        archive.writestr("eval_bundle/eval_meta_data.csv", "\n".join(baselines) + "\n")
        for uri, text in data.items():
            archive.writestr(f"eval_bundle/eval_data/{uri}", text)
    return file.getvalue()


def _kinds() -> Iterator[tuple[str, int, Callable[[int], dict[str, Any]]]]:
    """The three kinds of CORE's tasks: name, baseline in percent, maker of items."""

    def choice(number: int) -> dict[str, Any]:
        row = _choice(number)
        return {"query": row["question"], "choices": row["choices"], "gold": row["answer"]}

    def schema(number: int) -> dict[str, Any]:
        dice = random.Random(f"schema {number}")
        first, second = dice.sample(NAMES, 2)
        options = [f"{first} gave {second} a ring because {who}" for who in (first, second)]
        return {"context_options": options, "continuation": "was kind.", "gold": number % 2}

    def language(number: int) -> dict[str, Any]:
        dice = random.Random(f"language {number}")
        name, thing = dice.choice(NAMES), dice.choice(THINGS)
        context = f"{name} has {thing}. Ask {name} for"
        return {"context": context, "continuation": thing}

    yield "multiple_choice", 25, choice
    yield "schema", 50, schema
    yield "language_modeling", 0, language
