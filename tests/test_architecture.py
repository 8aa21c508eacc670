"""The layers of the design, read from the imports; and imports that have no effects."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each package of nanochat may import; a package also imports itself.
CORE = {"system", "tokenizer", "gpt"}
LAYERS = {
    "system": set(),
    "tokenizer": {"system"},
    "gpt": {"system"},
    "tools": {"system"},
    "report": {"system"},
    "pocket": {"system"},
    "optim": {"system", "gpt"},
    "data": {"system", "tokenizer", "tools", "pocket"},
    "engine": CORE | {"tools"},
    "checkpoint_manager": CORE,
    "evaluation": CORE | {"data", "engine", "report", "checkpoint_manager"},
    "server": CORE | {"engine", "report"},
    "training": CORE | {"optim", "data", "engine", "checkpoint_manager", "evaluation", "report"},
    "scaling_laws": CORE | {"optim", "data", "report", "training"},
}
LAYERS["stages"] = set(LAYERS)
SOURCES = sorted((ROOT / "nanochat").rglob("*.py"))
STATIC = ROOT / "nanochat" / "server" / "static"
# The same for the pages' modules.
PAGES = {"shared": set(), "answer": {"shared"}, "docs": {"shared"}, "dashboard": {"shared"}}
PAGES["chat"] = {"shared", "answer"}
SCRIPTS = sorted(STATIC.rglob("*.js"))


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


def package_of(name: str) -> str | None:
    """The package right below nanochat; None for nanochat itself."""
    top, *rest = name.split(".")
    return rest[0] if top == "nanochat" and rest else None


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_module_imports_only_its_own_package_and_lower_ones(path):
    own = package_of(module_name(path))
    for name in imports_of(path):
        assert name.split(".")[0] == "nanochat", f"{path} imports {name}"
        part = package_of(name)
        if part in LAYERS and part != own and own is not None:
            assert part in LAYERS[own], f"{path} imports {name}"


def test_every_package_has_a_layer_that_holds_only_lower_ones():
    floors: dict[str, int] = {}
    for name, below in LAYERS.items():  # lower ones first, so that there is no circle either
        floors[name] = 1 + max((floors[part] for part in below), default=-1)
    assert max(floors.values()) <= 7
    assert {package_of(module_name(path)) for path in SOURCES} == set(LAYERS) | {None}


def test_contributors_are_shown_the_same_table():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]+)\|$", text, re.MULTILINE)
    shown = {name: set(re.findall(r"`(\w+)`", below)) for name, below in rows}
    assert shown | {"stages": LAYERS["stages"]} == LAYERS


def test_the_package_shows_at_most_18_names():
    listing = ["git", "-C", str(ROOT / "nanochat"), "ls-files"]
    done = subprocess.run(listing, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr}")
    assert len({name.split("/")[0] for name in done.stdout.splitlines()}) <= 18


def test_a_checkout_has_the_stages_and_tasks_under_their_short_names():
    code = "import scripts.report as r, tasks.gsm8k as t; print(r.__file__); print(t.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert [Path(line) for line in done.stdout.splitlines()] == [
        ROOT / "nanochat" / "stages" / "report.py",
        ROOT / "nanochat" / "data" / "tasks" / "gsm8k.py",
    ]


def test_only_the_tokenizers_import_the_rust_module():
    users = {module_name(p) for p in SOURCES if "nanochat.tokenizer._rustbpe" in imports_of(p)}
    assert users <= {
        "nanochat.tokenizer.bpe",
        "nanochat.tokenizer.published",
        "nanochat.stages.doctor",
    }


def scripts_imported_by(path: Path, *, late: bool = True) -> set[Path]:
    """Every module that a page's module imports; late: also those it loads when it needs them."""
    text = path.read_text(encoding="utf-8")
    names = re.findall(r'^(?:import|export|\}).* from "(.+)";', text, re.MULTILINE)
    names += re.findall(r'\bimport\("(.+?)"\)', text) if late else []
    return {(path.parent / name).resolve() for name in names}


def test_the_pages_modules_import_what_exists_in_their_own_folder_and_lower_ones():
    assert {path.parent for path in SCRIPTS} == {STATIC / name for name in PAGES}
    for path in SCRIPTS:
        for found in scripts_imported_by(path):
            assert found in SCRIPTS, f"{path} imports {found}"
            own = path.parent.name
            assert found.parent.name in PAGES[own] | {own}, f"{path} imports {found}"


def test_the_chats_page_preloads_what_it_would_find_late():
    app = STATIC / "chat" / "app.js"
    early = {app} | scripts_imported_by(app, late=False)
    found = set(early)
    todo = list(early)
    while todo:
        more = scripts_imported_by(todo.pop(), late=False) - found
        found |= more
        todo += more
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<link rel="modulepreload" href="/(.+)">', page)
    assert sorted(links) == sorted(p.relative_to(STATIC).as_posix() for p in found - early)


def test_imports_have_no_circles():
    graph = {
        module_name(p): {n for n in imports_of(p) if n.startswith("nanochat")} for p in SOURCES
    }
    graph |= {str(p): {str(found) for found in scripts_imported_by(p)} for p in SCRIPTS}
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
