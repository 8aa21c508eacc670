#!/usr/bin/env bash
# The full pipeline on the nodes of a Slurm job; run from the repository folder:
#   sbatch --nodes=2 --gpus-per-node=8 --time=12:00:00 runs/slurm.sh
# Partition, account and time limit depend on the site: pass them to sbatch. PRESET, RUN and
# NANOCHAT_BASE_DIR are read from the environment, as in speedrun.sh.
#SBATCH --job-name=nanochat
#SBATCH --output=nanochat-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
# Slurm signals this script two minutes before the time limit: training saves and resumes later.
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

NODES=$SLURM_JOB_NUM_NODES
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))
export NODES MASTER
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 # within those two minutes

# Set up once here, as the nodes may share this folder; otherwise each node sets itself up below.
bash speedrun.sh --setup-only

# A SIGTERM to srun would kill its tasks; scancel --signal only passes the signal on to them.
stopping=0
trap 'stopping=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# shellcheck disable=SC2016 # the shell of each task expands it
srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 \
    bash -c 'NODE_RANK=$SLURM_NODEID exec bash speedrun.sh --no-serve' &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do
    status=0
    wait "$step" || status=$?
done
if [ "$stopping" = 1 ]; then
    echo "saved before the time limit; requeueing the job" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
