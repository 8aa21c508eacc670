"""A tiny run on disk, with untrained models, for tests of the evaluation stages."""

import json

import torch

from nanochat import checkpoint_manager
from nanochat.gpt import GPT, GPTConfig
from nanochat.system import storage
from nanochat.tokenizer import train_char

ALPHABET = "".join(chr(code) for code in range(32, 127)) + "\n"
FLAGS = "--run tiny --device cpu --dtype float32 --threads 1".split()


def make_run(folder, monkeypatch, stages=("base_train",)):
    """Make $NANOCHAT_BASE_DIR with a run "tiny" that has a checkpoint of each stage."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder / "base"))
    texts = [f"The cat number {i} sat on the mat and saw {i * 7} mice.\n" * 4 for i in range(60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    tokenizer = train_char([*texts, ALPHABET])
    options = {"data": str(folder / "texts.jsonl"), "depth": 1}
    for seed, stage in enumerate(stages):
        path = storage.stage_dir("tiny", stage)
        save_model(path, tokenizer, seed)
        storage.write_json(path / "config.json", {"options": options, "parameters": 12_345})
    return storage.run_dir("tiny")


def save_model(path, tokenizer, seed):
    sizes = GPTConfig(
        vocab_size=tokenizer.vocab_size, sequence_length=64, depth=1, width=32, heads=2
    )
    model = GPT(sizes, compute_dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    checkpoint_manager.save(
        path,
        5,
        weights=checkpoint_manager.copy_of_weights(model),
        config=model.config,
        tokenizer_=tokenizer,
        optimizer_state={},
        state={},
    )


def result(run, stage):
    return json.loads((run / stage / "result.json").read_text(encoding="utf-8"))
