#!/usr/bin/env bash
# Text in, a chat model you can talk to out: every stage of one run, then the web chat.
set -euo pipefail
# What is given relative to the caller's folder stays so.
case "${NANOCHAT_BASE_DIR:-/}" in /* | "~"*) ;; *) export NANOCHAT_BASE_DIR="$PWD/$NANOCHAT_BASE_DIR" ;; esac
case "${PRESET:-/}" in /* | "~"*) ;; *.toml) PRESET="$PWD/$PRESET" ;; esac
cd "$(dirname "$0")"

usage() {
    cat <<'TEXT'
bash speedrun.sh [--no-serve] [--setup-only]
Sets everything up, trains a tokenizer, a base model and a chat model, evaluates them, writes
report.md and report.html, and opens the web chat. Called again, it goes on where it stopped.

  --no-serve     do not start the web chat at the end
  --setup-only   stop once the environment is ready

  PRESET=pocket    embedded data on a CPU, minutes, no network (taken where there is no GPU)
  PRESET=gpu1      one GPU of 24-80 GB, hours
  PRESET=speedrun  8xH100, GPT-2 grade
  PRESET=my.toml   settings of your own, in the form of those in nanochat/presets
  RUN=name         name of the run (the preset's by default)
  PORT=8000        port of the web chat
  TORCH=cpu        install torch's small CPU build
  NANOCHAT_BASE_DIR=~/.cache/nanochat   where everything is written
TEXT
}

serve=1
setup_only=0
for word in "$@"; do
    case "$word" in
        --no-serve) serve=0 ;;
        --setup-only) setup_only=1 ;;
        -h | --help) usage; exit 0 ;;
        *) echo "error: unknown word $word; bash speedrun.sh --help lists what there is" >&2; exit 2 ;;
    esac
done

source scripts/bootstrap.sh
setup_start=$SECONDS
bootstrap
say "== set-up took $((SECONDS - setup_start)) s"
[ "$setup_only" = 1 ] && exit 0

gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ -z "${PRESET:-}" ]; then
    if [ "$gpus" -ge 8 ]; then PRESET=speedrun; elif [ "$gpus" -ge 1 ]; then PRESET=gpu1; else PRESET=pocket; fi
fi
RUN=${RUN:-$(basename "$PRESET" .toml)}
run_dir=$("$PYTHON" -c 'import sys; from nanochat import storage; print(storage.run_dir(sys.argv[1]))' "$RUN")
start=$SECONDS
say "== run $RUN with preset $PRESET on ${gpus} GPU(s), into $run_dir"
"$PYTHON" -m scripts.plan --preset "$PRESET"

at="the start"
stopped() {
    local status=$?
    [ "$status" = 0 ] || say "== stopped in $at (status $status); the same command goes on from there"
}
trap stopped EXIT

# A stage whose result.json is there is complete; an interrupted one resumes from its checkpoint.
stage() {
    local name=$1 trains=$2
    shift 2
    if [ -f "$run_dir/$name/result.json" ]; then
        say "== $name: already complete"
        return
    fi
    say "== $name"
    at=$name
    local words=(--preset "$PRESET" --run "$RUN" "$@")
    [ "$trains" = train ] && words+=(--resume)
    if [ "$gpus" -gt 1 ] && [ "$trains" != single ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$gpus" -m "scripts.$name" -- "${words[@]}"
    else
        "$PYTHON" -m "scripts.$name" "${words[@]}"
    fi
    # Asked to end by a signal, a stage saves and exits 0.
    [ -f "$run_dir/$name/result.json" ] || exit 130
}

stage tok_train single
stage tok_eval single
stage base_train train
stage base_loss many
stage base_eval many
stage mid_train train
stage chat_sft train
stage chat_rl train
stage chat_eval many
at=report
"$PYTHON" -m scripts.report --run "$RUN"
say "== done in $((SECONDS - start)) s: $run_dir/report.html"

if [ "$serve" = 1 ]; then
    exec "$PYTHON" -m scripts.chat_web --run "$RUN" --port "${PORT:-8000}"
fi
base=${NANOCHAT_BASE_DIR:+NANOCHAT_BASE_DIR=$NANOCHAT_BASE_DIR }
say "talk to it:  $base$(dirname "$PYTHON")/nanochat chat_cli --run $RUN    (or chat_web, in the browser)"
