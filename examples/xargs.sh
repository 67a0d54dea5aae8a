#!/usr/bin/env bash
# A picture of every case, four at a time.
#   bash examples/xargs.sh data/ pictures/
# The cases are those of the folders in data/. If one fails, the others are still shown, and the
# exit status is xargs's 123. Run it again after an interruption: existing pictures are kept.
set -euo pipefail

data=$1
export out=$2

# xargs would begin no other case after one that a signal ended, as for lack of memory.
show() {
    brats view "$1" -o "$out/$(basename "$1").png" --skip-existing || exit 1
}
export -f show

find "$data" -mindepth 1 -maxdepth 1 -type d -print0 |
    xargs -0 -n 1 -P "${JOBS:-4}" bash -c 'show "$1"' _
