#!/usr/bin/env bash
# Test and benchmark this package on one GPU: bash benchmarks/gpu_check.sh [--out FOLDER] [flags]
# PYTHON selects the interpreter, which needs torch; nothing has to be installed or built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/benchmarks/gpu_check.py" "$@"
