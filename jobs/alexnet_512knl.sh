#!/bin/bash
# AlexNet-BN, batch 32,768, on 512 Knights Landing nodes (You et al. 2017: 24 minutes).
#
# 4,000 steps x 32,768 images = 131.1 million images; at 88,970 images/s (174 a node, what You et al. reached)
# 131.1e6 / 88,970 = 1,473 s = 25 minutes = 210 node-hours. Your rate: jobs/bench_node.sh.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=alexnet_512knl
#SBATCH --nodes=512 --ntasks-per-node=1 --cpus-per-task=272
#SBATCH --constraint=knl,quad,cache
#SBATCH --exclusive --mem=0 --time=01:00:00
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%j.out
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet-squares} # edit 2: holds train/ and val/, from KIND=squares jobs/pack_imagenet.sh
RUN=${RUN:-${SCRATCH:-$HOME}/runs/alexnet_512knl${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}} # edit 3: checkpoints, log, status; submit again with the same one to go on
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2
RECIPE=${RECIPE:-$KNLTRAIN_ROOT/jobs/recipes/alexnet_bn_32k_lars.toml}
[ ! -e "$DATA/mean.npy" ] || set -- --set data.mean_image="$DATA/mean.npy" "$@" # by pack_imagenet.sh

survive "$RUN" srun python -m knltrain train "$RECIPE" --run "$RUN" --resume auto \
  --set data.train="$DATA/train" --set data.val="$DATA/val" "$@"
