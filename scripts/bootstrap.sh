# shellcheck shell=bash
# Sourced by speedrun.sh and check.sh. Defines `bootstrap`, which creates .venv from uv.lock, builds
# the Rust crate and sets $PYTHON to the environment's Python.
#   TORCH=cpu   install torch's small CPU build instead of the default one; an environment that has
#               it keeps it
#   UV_SYNC     extra arguments for `uv sync`, such as --no-dev

log() { printf '%s\n' "$*" >&2 || true; }
die() { log "error: $*"; exit 2; }

find_uv() {
    : "${HOME:=$(cd ~ && pwd)}"
    export HOME
    export PATH="$HOME/.local/bin:$HOME/.cargo/bin:$PATH"
    if command -v uv >/dev/null; then UV=(uv); return; fi
    if python3 -m uv --version >/dev/null 2>&1; then UV=(python3 -m uv); return; fi
    log "== installing uv, the Python package manager"
    if command -v curl >/dev/null && curl -LsSf --max-time 60 https://astral.sh/uv/install.sh 2>/dev/null | sh >/dev/null 2>&1 \
        && command -v uv >/dev/null; then UV=(uv); return; fi
    python3 -m pip install --quiet --user uv >/dev/null 2>&1 \
        || python3 -m pip install --quiet uv >/dev/null 2>&1 \
        || python3 -m pip install --quiet --user --break-system-packages uv >/dev/null 2>&1 || true
    hash -r
    if command -v uv >/dev/null; then UV=(uv); return; fi
    if python3 -m uv --version >/dev/null 2>&1; then UV=(python3 -m uv); return; fi
    die "uv could not be installed, neither with curl nor with pip; install it by hand: https://docs.astral.sh/uv"
}

rust_is_new_enough() {
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    local version major minor
    version=$(rustc --version 2>/dev/null | awk '{print $2}')
    IFS=. read -r major minor _ <<<"$version"
    [ "${major:-0}" -gt 1 ] || { [ "${major:-0}" -eq 1 ] && [ "${minor:-0}" -ge 85 ]; }
}

find_rust() {
    rust_is_new_enough && return
    log "== installing Rust (1.85 or later builds the tokenizer)"
    if command -v rustup >/dev/null; then
        { rustup toolchain install stable --profile minimal && rustup default stable; } >/dev/null 2>&1 || true
    elif command -v curl >/dev/null; then
        curl --proto '=https' --tlsv1.2 -sSf --max-time 300 https://sh.rustup.rs 2>/dev/null \
            | sh -s -- -y --profile minimal >/dev/null 2>&1 || true
    fi
    hash -r
    rust_is_new_enough && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq >/dev/null 2>&1 || true
        apt-get install -y -qq cargo rustc >/dev/null 2>&1 || true
        hash -r
    fi
    rust_is_new_enough && return
    local found
    found=$(rustc --version 2>/dev/null || echo none)
    die "Rust 1.85 or later is required (found: $found) and could not be installed; get it from https://rustup.rs or your distribution"
}

# Xcode's cc exists before its tools are installed, so a program is built rather than looked for.
can_link() {
    local folder compiler linked=1
    folder=$(mktemp -d) || return 1
    printf 'int main(void) { return 0; }\n' >"$folder/main.c"
    for compiler in cc gcc clang; do
        if "$compiler" "$folder/main.c" -o "$folder/main" >/dev/null 2>&1; then linked=0; break; fi
    done
    rm -rf "$folder"
    return "$linked"
}

# Whether a GPU is there that the kernels of the extra `gpu` are made for (Hopper, B200).
takes_flash_attention() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
        | awk -F. '$1 == 9 || $1 == 10 { found = 1 } END { exit !found }'
}

bootstrap() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    find_uv
    find_rust
    can_link || die "a C compiler that links is required to build the tokenizer; install gcc (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)"
    log "== environment: uv sync from uv.lock"
    local args=(--project "$root" --locked)
    local extra
    [ -n "${UV_SYNC:-}" ] && read -r -a extra <<<"$UV_SYNC" && args+=("${extra[@]}")
    if [ "${TORCH:-}" = cpu ] || compgen -G "$root/.venv/lib/python*/site-packages/torch-*+cpu.dist-info" >/dev/null; then
        local package  # the CUDA build of torch and what it depends on
        for package in torch triton $(sed -n 's/^name = "\(\(nvidia\|cuda\)-[^"]*\)"$/\1/p' "$root/uv.lock"); do
            args+=(--no-install-package "$package")
        done
        "${UV[@]}" sync "${args[@]}" --inexact --quiet
        "${UV[@]}" pip install --quiet --python "$root/.venv/bin/python" \
            --index https://download.pytorch.org/whl/cpu "torch>=2.11"
    elif ! takes_flash_attention || ! "${UV[@]}" sync "${args[@]}" --extra gpu --quiet; then
        takes_flash_attention && log "== warning: the extra 'gpu' cannot be installed: attention is slower without it"
        "${UV[@]}" sync "${args[@]}" --quiet
    fi
    PYTHON="$root/.venv/bin/python"
    "$PYTHON" -c 'import nanochat.tokenizer._rustbpe, torch' || die "the environment is broken; remove .venv and run again"
}
