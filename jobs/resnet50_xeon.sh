#!/bin/bash
# ResNet-50, batch 8,192, on 64 dual-socket Xeon nodes with DDR alone (Skylake and later).
#
# 14,040 steps x 8,192 images = 115.0 million images; at 98.5 images/s a node (Codreanu et al. 2017, 2 x Platinum 8160)
# 115.0e6 / (64 x 98.5) = 18,244 s = 5 hours = 324 node-hours. Your rate: jobs/bench_node.sh.
# One rank a socket: set --cpus-per-task to the logical CPUs of a socket (here 24 cores, two threads each).
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=resnet50_xeon
#SBATCH --nodes=64 --ntasks-per-node=2 --cpus-per-task=48
#SBATCH --exclusive --mem=0 --time=08:00:00
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%j.out
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet} # edit 2: holds train/ and val/, from jobs/pack_imagenet.sh
RUN=${RUN:-${SCRATCH:-$HOME}/runs/resnet50_xeon${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}} # edit 3: checkpoints, log, status; submit again with the same one to go on
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2
RECIPE=${RECIPE:-$KNLTRAIN_ROOT/jobs/recipes/resnet50_8k_sgd.toml}

survive "$RUN" srun python -m knltrain train "$RECIPE" --run "$RUN" --resume auto \
  --set data.train="$DATA/train" --set data.val="$DATA/val" "$@"
