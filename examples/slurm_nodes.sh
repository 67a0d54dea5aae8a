#!/usr/bin/env bash
# Train one network on several machines of a Slurm cluster, with all their GPUs.
#   sbatch examples/slurm_nodes.sh splits.yaml -o runs/large
#SBATCH --job-name=brats
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=24:00:00
set -euo pipefail

# One torchrun per machine; they meet at the first. (sed reads all names; head would break the pipe.)
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
NODES=$SLURM_JOB_NUM_NODES
GPUS=${SLURM_GPUS_ON_NODE:-1}
export HEAD NODES GPUS

# If one machine fails, the others would wait for it, for up to half an hour.
srun --kill-on-bad-exit=1 sh "${BRATS_EXAMPLES:-examples}/torchrun.sh" "$@"
