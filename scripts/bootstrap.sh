# shellcheck shell=bash
# Sourced by speedrun.sh and check.sh. Defines `bootstrap`, which creates .venv from uv.lock, builds
# the Rust crate and sets $PYTHON to the environment's Python.
#   TORCH       the build of torch: auto (uv.lock's, or another one if the machine's NVIDIA driver or
#               GPU is too old for it), cpu, cu126, cu128, cu130, rocm; if it is not set, an
#               environment keeps the one it has
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

# The driver's version and the newest GPU's compute capability, as in "535.104.05 9.0"; nothing
# where there is no NVIDIA GPU. A container may have the driver and no nvidia-smi: any GPU then.
nvidia_gpu() {
    local found
    if found=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null); then
        awk -F', *' '$2 + 0 > best { best = $2 + 0; driver = $1; newest = $2 }
            END { if (best) print driver, newest }' <<<"$found"
    elif [ -e /dev/nvidiactl ]; then
        sed -n 's/^NVRM version:.* \([0-9]\{3,\}\.[0-9.]*\) .*/\1 8.0/p' /proc/driver/nvidia/version 2>/dev/null || true
    fi
}

# Whether the first version is the second or a later one.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# The build of torch for this machine: "lock" for that of uv.lock, or an index of download.pytorch.org.
# uv.lock has CUDA 13, which needs driver 580 and has no code for GPUs before Turing. Builds for
# CUDA 12 take any driver from 525.60.13 on; those for 12.6 have code for Maxwell, Pascal and Volta,
# those for 12.8 for Blackwell.
build_for_machine() {
    local driver capability
    read -r driver capability <<<"$(nvidia_gpu)"
    if [ -z "$driver" ]; then echo lock; return; fi
    at_least "$driver" 525.60.13 || die "the NVIDIA driver $driver is too old for torch 2.11 or later; update it to 580 or later (525.60.13 is the least), or set TORCH=cpu to train on the CPU"
    if ! at_least "$capability" 7.5; then echo cu126
    elif at_least "$driver" 580; then echo lock
    else echo cu128
    fi
}

# The build of torch that the environment has: as above, or nothing.
installed_build() {
    local found
    for found in "$1"/.venv/lib/python*/site-packages/torch-[0-9]*.dist-info; do
        [ -e "$found" ] || continue
        found=$(basename "$found" .dist-info)
        case "$found" in *+*) echo "${found##*+}" ;; *) echo lock ;; esac
        return
    done
}

wanted_build() {
    local installed=$1
    case "${TORCH:-}" in
        "") if [ -n "$installed" ] && [ "$installed" != lock ]; then echo "$installed"; else build_for_machine; fi ;;
        auto) build_for_machine ;;
        rocm) echo rocm7.2 ;;
        cpu) if [ "$(uname)" = Darwin ]; then echo lock; else echo cpu; fi ;; # macOS has one build
        cu[0-9][0-9][0-9] | rocm[0-9].[0-9]) echo "$TORCH" ;;
        *) die "TORCH must be auto, cpu, cu126, cu128, cu130 or rocm, got '$TORCH'" ;;
    esac
}

# Builds for two versions of CUDA overwrite each other's files, so that the old one has to go first.
remove_torch() {
    local package packages=()
    for package in $("${UV[@]}" pip list --quiet --python "$1/.venv/bin/python" --format freeze \
        | sed -n 's/^\(torch\|\(pytorch-\)\{0,1\}triton[^=]*\|nvidia-[^=]*\|cuda-[^=]*\)==.*/\1/p'); do
        packages+=("$package")
    done
    [ ${#packages[@]} = 0 ] || "${UV[@]}" pip uninstall --quiet --python "$1/.venv/bin/python" "${packages[@]}"
}

has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# torch.compile needs Python.h, which Debian's and Ubuntu's Python lack without python3-dev, and uv's
# own Pythons have. Sets $python_args for `uv sync`.
find_python() {
    local found version
    python_args=()
    found=$("${UV[@]}" python find --project "$1" 2>/dev/null) || return 0 # uv gets one of its own
    ! has_headers "$found" || return 0
    version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if "${UV[@]}" python install --quiet "$version"; then
        python_args=(--managed-python --python "$version")
    else
        log "== warning: $found has no Python.h, which torch.compile needs; install it (Debian, Ubuntu: apt install python3-dev)"
    fi
}

# Whether a GPU is there that the kernels of the extra `gpu` are made for (Hopper, B200).
takes_flash_attention() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
        | awk -F. '$1 == 9 || $1 == 10 { found = 1 } END { exit !found }'
}

# `uv sync` with the given arguments, and the extra `gpu` where it helps.
sync_environment() {
    if takes_flash_attention; then
        "${UV[@]}" sync "$@" --extra gpu --quiet && return
        log "== warning: the extra 'gpu' cannot be installed: attention is slower without it"
    fi
    "${UV[@]}" sync "$@" --quiet
}

bootstrap() {
    local root installed build package status=0 python_args extra args
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    find_uv
    find_rust
    can_link || die "a C compiler that links is required to build the tokenizer; install gcc (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)"
    # Triton looks for these two only.
    command -v gcc >/dev/null || command -v clang >/dev/null || export CC="${CC:-cc}"
    installed=$(installed_build "$root")
    build=$(wanted_build "$installed")
    find_python "$root"
    args=(--project "$root" --locked ${python_args[@]+"${python_args[@]}"})
    [ -n "${UV_SYNC:-}" ] && read -r -a extra <<<"$UV_SYNC" && args+=("${extra[@]}")
    if [ -n "$installed" ] && [ "$installed" != "$build" ]; then
        log "== torch: the build '$build' replaces '$installed'"
        remove_torch "$root"
    fi
    if [ "$build" = lock ]; then
        log "== environment: uv sync from uv.lock"
        sync_environment "${args[@]}"
    else
        log "== environment: uv sync from uv.lock, with torch from download.pytorch.org/whl/$build"
        # uv.lock's build of torch and what it depends on, and what is made for that build.
        for package in torch triton flash-attn-4 $(sed -n 's/^name = "\(\(nvidia\|cuda\)-[^"]*\)"$/\1/p' "$root/uv.lock"); do
            args+=(--no-install-package "$package")
        done
        sync_environment "${args[@]}" --inexact
        "${UV[@]}" pip install --quiet --python "$root/.venv/bin/python" \
            --index "https://download.pytorch.org/whl/$build" "torch>=2.11"
        # An index that does not exist counts as empty: uv takes PyPI's build then.
        [ "$(installed_build "$root")" = "$build" ] || die "download.pytorch.org/whl/$build has no torch 2.11 or later for this machine; set TORCH to another build"
    fi
    PYTHON="$root/.venv/bin/python"
    # A GPU that torch cannot use is said here, before anything is downloaded or trained.
    "$PYTHON" -c 'import nanochat.tokenizer._rustbpe
from nanochat.system import config, machine
config.cli(machine.gpus)' || status=$?
    [ "$status" != 2 ] || exit 2
    [ "$status" = 0 ] || die "the environment is broken; remove .venv and run again"
}
