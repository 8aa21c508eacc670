#!/usr/bin/env bash
# Sets everything up, then runs linters, the type checker and all tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
case "${1:-}" in
    -h | --help)
        cat <<'TEXT'
bash check.sh [PYTEST ARGS]
Sets everything up (like speedrun.sh), then runs ruff, mypy, shellcheck, cargo fmt, clippy and test,
and pytest.
    bash check.sh -k tokenizer     only the Python tests with "tokenizer" in their names
TEXT
        exit 0 ;;
esac
source scripts/bootstrap.sh
bootstrap
BIN=$(dirname "$PYTHON")
step() { log "== $*"; }

step ruff
"$BIN/ruff" format --check .
"$BIN/ruff" check .
step mypy
"$BIN/mypy"
step shellcheck
if [ -x "$BIN/shellcheck" ]; then "$BIN/shellcheck" -x ./*.sh scripts/*.sh runs/*.sh; else log "shellcheck is missing: skipped (its package has no build for this machine)"; fi
step cargo
export PYO3_PYTHON="$PYTHON"
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else log "cargo fmt is missing: skipped (rustup component add rustfmt)"; fi
if cargo clippy --version >/dev/null 2>&1; then cargo clippy --quiet --all-targets -- -D warnings; else log "cargo clippy is missing: skipped (rustup component add clippy)"; fi
cargo test --quiet
step pytest
# In the order of the files: sorted by number of tests, a file with one long test would come last.
"$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
