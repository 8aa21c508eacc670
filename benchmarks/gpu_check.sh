#!/usr/bin/env bash
# What one CUDA machine makes of this package: bash benchmarks/gpu_check.sh [--out FOLDER] [flags]
# PYTHON names the interpreter; it needs torch, nothing needs to be installed or built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/benchmarks/gpu_check.py" "$@"
