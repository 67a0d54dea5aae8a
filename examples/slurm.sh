#!/usr/bin/env bash
# Five-fold cross-validation on a Slurm cluster, a job and a GPU for each fold.
#   brats split data/ -o splits.yaml --folds 5
#   sbatch examples/slurm.sh              # what follows goes to brats train, such as --epochs 300
#SBATCH --job-name=brats
#SBATCH --array=0-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

fold=$SLURM_ARRAY_TASK_ID
run=runs/fold$fold

# A job that was put back into the queue resumes its run.
if [[ -e $run/config.yaml ]]; then
    brats train -o "$run" --fold "$fold" --resume "$@"
else
    brats train splits.yaml -o "$run" --fold "$fold" "$@"
fi
