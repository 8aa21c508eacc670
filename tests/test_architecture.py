"""The layers of the design, read from the imports; and imports that have no effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: "errors config option_fields device memory_limit distributed interruption last_words "
    "node_words storage metrics downloads",
    1: "attention block_attention fast_exp gpt gpt_config layers token_loss fp8 flops muon adamw "
    "optim param_groups sharding memory_plan time_plan schedules scaling isoflop tokenizer "
    "published conversation packing sampling kv_cache calculator eval_task _rustbpe",
    2: "dataset text_files shards hub token_shards token_stream chat_rows dataloader "
    "checkpoint_manager generation branches engine execution sandbox jsonl core_bundle sources "
    "pocket",
    3: "trainer progress saving stage stage_opening stage_record chat_training eval_stage rollouts "
    "batch_size loss_eval core_eval chat_eval report report_page report_data plots sweep "
    "sweep_words isoflop_report server",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}
SOURCES = sorted(p for top in ("nanochat", "scripts", "tasks") for p in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module of the project that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("nanochat", "scripts", "tasks")}


def nanochat_part(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "nanochat" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_module_imports_only_its_own_layer_and_lower_ones(path):
    own = nanochat_part(module_name(path))
    for name in imports_of(path):
        top, part = name.split(".")[0], nanochat_part(name)
        if path.is_relative_to(ROOT / "nanochat"):
            assert top == "nanochat", f"{path} imports {name}"
            if own is not None and part in LAYER_OF:
                assert LAYER_OF[part] <= LAYER_OF[own], f"{path} imports the higher {name}"
        elif path.is_relative_to(ROOT / "tasks"):
            assert top != "scripts", f"{path} imports {name}"
            assert part is None or LAYER_OF.get(part, 0) <= 2, f"{path} imports the higher {name}"
        else:
            assert top != "scripts" or name == "scripts", f"{path} imports another script: {name}"


def test_every_module_has_a_layer():
    parts = {nanochat_part(module_name(p)) for p in SOURCES} - {None}
    assert parts <= set(LAYER_OF), f"give a layer to {sorted(parts - set(LAYER_OF))}"


def test_only_the_tokenizers_and_the_token_cache_import_the_rust_module():
    users = {module_name(p) for p in SOURCES if "nanochat._rustbpe" in imports_of(p)}
    assert users <= {
        "nanochat.tokenizer",
        "nanochat.published",
        "nanochat.token_shards",
        "scripts.doctor",
    }


def test_imports_have_no_circles():
    graph = {
        module_name(p): {n for n in imports_of(p) if n.startswith("nanochat")} for p in SOURCES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done or name not in graph:
            return
        for target in graph[name]:
            if target != name and not name.startswith(target + "."):
                visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_importing_every_module_has_no_effects(tmp_path):
    names = [module_name(p) for p in SOURCES if p.name != "__main__.py"]
    code = f"""
import importlib, os, sys
sys.argv = ["test", "--no-such-flag"]
import torch
for name in {names!r}:
    importlib.import_module(name)
    assert not torch.cuda.is_initialized(), f"{{name}} starts CUDA"
    assert not os.listdir(), f"{{name}} writes {{os.listdir()}}"
    assert not os.path.exists(os.environ["NANOCHAT_BASE_DIR"]), f"{{name}} makes the base folder"
    for heavy in ("wandb", "fastapi", "uvicorn", "datasets"):
        assert heavy not in sys.modules, f"{{name}} imports {{heavy}}"
"""
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "NANOCHAT_BASE_DIR": str(tmp_path / "base"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
