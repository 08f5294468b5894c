#!/bin/bash
# ResNet-50, batch 8,192, on 16 dual-socket EPYC nodes (64 cores a socket, NPS4).
#
# 14,040 steps x 8,192 images = 115.0 million images; no published float32 rate: at R images/s a node the job takes
# 115.0e6 / (16 x R) s, e.g. 8.0 hours = 128 node-hours at R = 250. Measure R first: jobs/bench_node.sh.
# One rank a NUMA domain, eight a node; with NPS1 set --ntasks-per-node=2 --cpus-per-task=128.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=resnet50_epyc
#SBATCH --nodes=16 --ntasks-per-node=8 --cpus-per-task=32
#SBATCH --exclusive --mem=0 --time=12:00:00
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%j.out
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet} # edit 2: holds train/ and val/, from jobs/pack_imagenet.sh
RUN=${RUN:-${SCRATCH:-$HOME}/runs/resnet50_epyc${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}} # edit 3: checkpoints, log, status; submit again with the same one to go on
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2
RECIPE=${RECIPE:-$KNLTRAIN_ROOT/jobs/recipes/resnet50_8k_sgd.toml}

survive "$RUN" srun python -m knltrain train "$RECIPE" --run "$RUN" --resume auto \
  --set data.train="$DATA/train" --set data.val="$DATA/val" "$@"
