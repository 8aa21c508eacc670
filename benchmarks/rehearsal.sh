#!/usr/bin/env bash
# Rehearse the speedrun on this machine's CPU, at toy size, without a network:
#   bash benchmarks/rehearsal.sh [--kills] [--ranks 8] [--out FOLDER]
# It runs speedrun.sh itself with the speedrun preset, of which only sizes are reduced; everything
# that a run downloads comes from a small server on this machine. PYTHON selects the interpreter; by
# default the environment is set up as speedrun.sh does it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    source "$root/scripts/bootstrap.sh"
    bootstrap
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" "$root/benchmarks/rehearsal.py" "$@"
