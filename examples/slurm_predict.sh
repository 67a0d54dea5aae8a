#!/usr/bin/env bash
# Segment many cases on a Slurm cluster, in four jobs with a GPU each.
#   sbatch examples/slurm_predict.sh data/ runs/first predictions/
# Run it again after an interruption: what is there stays as it is. On a network disk, several jobs
# that add to predictions.jsonl at once may lose lines of it, but never a label map.
#SBATCH --job-name=brats
#SBATCH --array=0-3
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=4:00:00
#SBATCH --requeue
set -euo pipefail

data=$1   # a folder with one folder per case
model=$2  # a run's folder, or a checkpoint
out=$3
shift 3   # what follows goes to brats predict, such as --tta

# Every fourth case, beginning with the one of this job's number.
number=0
cases=()
for case in "$data"/*/; do
    if ((number++ % SLURM_ARRAY_TASK_COUNT == SLURM_ARRAY_TASK_ID)); then
        cases+=("$case")
    fi
done

# With more jobs than cases, some have nothing to do.
if ((${#cases[@]})); then
    printf '%s\n' "${cases[@]}" | brats predict - -o "$out" --model "$model" --skip-existing "$@"
fi
