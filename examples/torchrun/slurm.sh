#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Usage: sbatch examples/torchrun/slurm.sh conf/training.yaml [key=value ...]
# One torchrun on each node, one process on each GPU. See several_machines.md.

set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Two minutes before the end: tell the processes that srun started for this job (not this script: that would take
# --batch or --full). All ranks save and end at the next batch; then the same job is queued again, and goes on.
save_and_requeue() {
    scancel --signal=USR1 "$SLURM_JOB_ID"
    wait
    scontrol requeue "$SLURM_JOB_ID"
    exit
}
trap save_and_requeue USR1

# torchrun itself ignores SIGUSR1, which would end it; the training processes listen to it all the same.
srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec torchrun "$@"' torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 4 \
    --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m espnet3_lite train "$@" &

wait
