#!/usr/bin/env bash
# From text to a chat model: runs every stage of one run, then serves the web chat.
set -euo pipefail
# Relative paths are relative to the caller's folder.
case "${NANOCHAT_BASE_DIR:-/}" in /* | "~"*) ;; *) export NANOCHAT_BASE_DIR="$PWD/$NANOCHAT_BASE_DIR" ;; esac
case "${PRESET:-/}" in /* | "~"*) ;; *.toml) PRESET="$PWD/$PRESET" ;; esac
cd "$(dirname "$0")"
# Container images often set it; every stage would then recompile the Python of torch, 5-7 s.
unset PYTHONDONTWRITEBYTECODE

usage() {
    cat <<'TEXT'
bash speedrun.sh [--no-serve] [--setup-only]
Sets everything up, trains a tokenizer, a base model and a chat model, evaluates them, writes
report.md and report.html, and starts the web chat. Run again, it resumes where it stopped.

  --no-serve     do not start the web chat at the end
  --setup-only   stop once the environment is ready

  PRESET=pocket    built-in data on a CPU, minutes, no network (the default without a GPU)
  PRESET=gpu1      any GPU, hours (the default on fewer or smaller GPUs than speedrun's)
  PRESET=speedrun  8xH100, GPT-2 grade (the default on eight GPUs of 70 GB or more, from A100 on)
  PRESET=my.toml   your own settings, in the format of nanochat/presets
  RUN=name         name of the run (default: the name of the preset)
  PORT=8000        port of the web chat
  PROCESSES=8      processes that train together (default: one for each GPU, else one)
  TORCH=auto       the build of torch: auto takes the one that fits the NVIDIA driver and GPU; or cpu
                   (small), cu126, cu128, cu130, rocm. Not set: what is installed, else auto
  NANOCHAT_BASE_DIR=~/.cache/nanochat   the folder for all files

On several machines, run the same command on each (recipes for Slurm and SkyPilot: runs/README.md):
  NODES=2  NODE_RANK=0  MASTER=host:29500   the number of machines, the index of this one, and the
           address of the first, whose next port is used too; checkpoints are on the first's disk
TEXT
}

serve=1
setup_only=0
for arg in "$@"; do
    case "$arg" in
        --no-serve) serve=0 ;;
        --setup-only) setup_only=1 ;;
        -h | --help) usage; exit 0 ;;
        *) echo "error: unknown argument $arg; bash speedrun.sh --help lists the options" >&2; exit 2 ;;
    esac
done

# Ends unless a variable, if it is set, is a whole number from `least` on.
check_number() {
    local name=$1 least=$2 value=${!1:-$2}
    if [[ ! $value =~ ^(0|[1-9][0-9]{0,5})$ ]] || [ "$value" -lt "$least" ]; then
        echo "error: $name must be a whole number from $least on, got '$value'" >&2
        exit 2
    fi
}
check_number PROCESSES 1
check_number NODES 1
check_number NODE_RANK 0

source scripts/bootstrap.sh
setup_start=$SECONDS
bootstrap
trap '' PIPE # if the reader of the output leaves, the run goes on
log "== setup took $((SECONDS - setup_start)) s"
[ "$setup_only" = 1 ] && exit 0

# The number of GPUs and, unless a preset was chosen, the one that suits them and why.
found=$("$PYTHON" -c '
import sys
from nanochat.system import config, machine
config.cli(lambda: print(machine.for_speedrun(sys.argv[1])))
' "${PRESET:-}")
read -r gpus suggested reason <<<"$found"
[ -n "${PRESET:-}" ] || log "== preset $suggested: $reason"
PRESET=${PRESET:-$suggested}
RUN=${RUN:-$(basename "$PRESET" .toml)}
run_dir=$("$PYTHON" -c 'import sys; from nanochat.system import storage; print(storage.run_dir(sys.argv[1]))' "$RUN")
nodes=${NODES:-1}
node_rank=${NODE_RANK:-0}
if [ "$nodes" -gt 1 ]; then
    : "${MASTER:?is required with NODES: the address of the first node, as host:port}"
    agreement_address=${MASTER%:*}:$((${MASTER##*:} + 1))
fi
start=$SECONDS
log "== run $RUN with preset $PRESET on ${gpus} GPU(s), node $node_rank of $nodes, into $run_dir"
# 141: nobody reads its output
[ "$node_rank" != 0 ] || "$PYTHON" -m scripts.plan --preset "$PRESET" ${PROCESSES:+--processes "$PROCESSES"} || [ $? = 141 ]

at="the start"
fetching="" # the process group that downloads text meanwhile
stopped() {
    local status=$?
    [ -z "$fetching" ] || kill -TERM -- "-$fetching" 2>/dev/null || true
    [ "$status" = 0 ] || log "== stopped in $at (status $status); the same command resumes there"
}
trap stopped EXIT

# Prints the first node's value on all nodes, as the others cannot read its disk.
agree() {
    if [ "$nodes" = 1 ]; then echo "$2"; return; fi
    "$PYTHON" -c '
import sys
from nanochat.system import config, node_agreement
about, value, nodes, rank, address = sys.argv[1:]
config.cli(lambda: print(node_agreement.agree(about, value, nodes=int(nodes), rank=int(rank), address=address)))
' "$1" "$2" "$nodes" "$node_rank" "$agreement_address"
}

stop_requested=0
# Runs a command so that it gets a signal exactly once, whether the signal was sent to this script
# only or to its process group.
run() {
    local child status=0
    set -m # the command gets its own process group
    "$@" &
    child=$!
    set +m
    trap 'stop_requested=1; kill -TERM "$child" 2>/dev/null || true' TERM HUP
    trap 'stop_requested=1; kill -INT "$child" 2>/dev/null || true' INT
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT HUP
    return "$status"
}
# Seconds that torchrun gives its processes to save after a signal; its default, 30, may be too short.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}

state() { if [ -f "$run_dir/$1/result.json" ]; then echo complete; else echo "$2"; fi; }

# A stage with a result.json is complete; an interrupted one resumes from its checkpoint.
stage() {
    local name=$1 trains=$2 found processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
    shift 2
    found=$(agree "before $name" "$(state "$name" missing)")
    if [ "$found" = complete ]; then
        log "== $name: already complete"
        return
    fi
    log "== $name"
    at=$name
    local args=(--preset "$PRESET" --run "$RUN" "$@") launch=(--standalone)
    [ "$trains" = train ] && args+=(--resume)
    # Fixed node ranks, as the first node has the checkpoints.
    [ "$nodes" -gt 1 ] && launch=(--nnodes "$nodes" --node-rank "$node_rank"
        --rdzv-backend static --rdzv-endpoint "$MASTER" --rdzv-id "$RUN-$name")
    if [ "$trains" != single ] && [ $((nodes * processes)) -gt 1 ]; then
        # What torchrun sets by itself, but with a warning; each process then takes its share of cores.
        OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} run "$PYTHON" -m nanochat.system.launcher "${launch[@]}" --nproc-per-node "$processes" -m "scripts.$name" -- "${args[@]}"
    elif [ "$node_rank" = 0 ]; then
        run "$PYTHON" -m "scripts.$name" "${args[@]}"
    fi
    # After a signal a stage saves and exits with 0.
    found=$(agree "after $name" "$(state "$name" stopped)")
    [ "$found" = complete ] && [ "$stop_requested" = 0 ] || exit 130
}

# The text of base training arrives while the tokenizer trains: GPUs that wait cost money. Base
# training fetches what is missing then. In a process group of its own, so that all of it can be
# stopped with this script.
fetch_meanwhile() {
    [ "$PRESET" != pocket ] && [ "$(state base_train missing)" != complete ] || return 0
    set -m
    { "$PYTHON" -m scripts.fetch --preset "$PRESET" || log "== the download stopped; base_train fetches the rest"; } &
    fetching=$!
    set +m
}

fetch_meanwhile
stage tok_train single
stage tok_eval single
stage base_train train
stage base_loss many
stage base_eval many
stage mid_train train
stage chat_sft train
stage chat_rl train
stage chat_eval many
[ "$node_rank" = 0 ] || exit 0
at=report
made=$run_dir/report.html
"$PYTHON" -m scripts.report --run "$RUN" || made="$run_dir (the report is missing)" # the models are there
log "== done in $((SECONDS - start)) s: $made"

if [ "$serve" = 1 ]; then
    exec "$PYTHON" -m scripts.chat_web --run "$RUN" --port "${PORT:-8000}"
fi
base=${NANOCHAT_BASE_DIR:+NANOCHAT_BASE_DIR=$NANOCHAT_BASE_DIR }
log "chat with it:  $base$(dirname "$PYTHON")/nanochat chat_cli --run $RUN    (or chat_web, in the browser)"
