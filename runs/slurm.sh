#!/usr/bin/env bash
# The whole pipeline on the nodes of a Slurm job; from the folder of the repository:
#   sbatch --nodes=2 --gpus-per-node=8 --time=12:00:00 runs/slurm.sh
# Partition, account and times are the site's: give them to sbatch. PRESET, RUN and
# NANOCHAT_BASE_DIR are taken from the environment, as by speedrun.sh.
#SBATCH --job-name=nanochat
#SBATCH --output=nanochat-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
# Two minutes before the time is up this script is told, so that training saves and goes on later.
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

NODES=$SLURM_JOB_NUM_NODES
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))
export NODES MASTER
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 # within those two minutes

# Once, as the nodes may share this folder; where they do not, each sets itself up below.
bash speedrun.sh --setup-only

# srun ends its tasks when it is sent SIGTERM itself; scancel only hands the signal to them.
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
    echo "saved before the end of the job's time; back to the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
