#!/usr/bin/env bash
# From many cases to label maps, scores and meshes.
#   bash examples/batch.sh data/ runs/first out/
# Run it again after an interruption: existing outputs are kept.
set -euo pipefail

data=$1   # the data set, in any layout that brats reads
model=$2  # a run's folder, or a checkpoint
out=$3

failed=0
try() {
    local status=0
    "$@" || status=$?
    case $status in
        0) ;;
        3) failed=3 ;;         # some case's data: named on stderr; the others continue
        *) exit "$status" ;;
    esac
}

# One process for all cases, so that the model is loaded once.
try brats predict "$data" -o "$out/predictions" --model "$model" --skip-existing

try brats evaluate "$out/predictions" "$data" -o "$out/scores.csv" --overwrite

for segmentation in "$out"/predictions/*.nii.gz; do
    mesh="$out/meshes/$(basename "$segmentation" .nii.gz)_WT.stl"
    [[ -e $mesh ]] || try brats mesh "$segmentation" --region WT -o "$mesh"
done

exit "$failed"
