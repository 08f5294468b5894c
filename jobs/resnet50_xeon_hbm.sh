#!/bin/bash
# ResNet-50, batch 8,192, on 16 Xeon Max nodes (2 sockets x 56 cores, 64 GB of HBM each, SNC4).
#
# 14,040 steps x 8,192 images = 115.0 million images; no published float32 rate: at R images/s a node the job takes
# 115.0e6 / (16 x R) s, e.g. 6.7 hours = 107 node-hours at R = 300. Measure R first: jobs/bench_node.sh.
# One rank a NUMA domain, eight a node. HBM in flat mode is found at start and preferred (KNLTRAIN_MEMORY=8-15 says
# it by hand); in cache mode there is nothing to do.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=resnet50_xeon_hbm
#SBATCH --nodes=16 --ntasks-per-node=8 --cpus-per-task=28
#SBATCH --exclusive --mem=0 --time=10:00:00
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%j.out
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet} # edit 2: holds train/ and val/, from jobs/pack_imagenet.sh
RUN=${RUN:-${SCRATCH:-$HOME}/runs/resnet50_xeon_hbm${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}} # edit 3: checkpoints, log, status; submit again with the same one to go on
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2
RECIPE=${RECIPE:-$KNLTRAIN_ROOT/jobs/recipes/resnet50_8k_sgd.toml}

survive "$RUN" srun python -m knltrain train "$RECIPE" --run "$RUN" --resume auto \
  --set data.train="$DATA/train" --set data.val="$DATA/val" "$@"
