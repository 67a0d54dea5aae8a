#!/bin/sh
# Train one network on one or several machines with several GPUs each: run this on every machine.
#   GPUS=4 sh examples/torchrun.sh splits.yaml -o runs/large                       # one machine
#   HEAD=node1 NODES=2 GPUS=4 sh examples/torchrun.sh splits.yaml -o runs/large    # on each of two
# HEAD is the name of the first machine, which the others connect to. The data, the splits file and
# the runs lie on a disk that all machines see. The first process writes; a step takes batch_size
# patches on every GPU. On one machine, `brats train --gpu 0,1,2,3` does the same.
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${GPUS:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost}:${PORT:-29400}" --rdzv-id brats \
    -m brats_cli train "$@"
