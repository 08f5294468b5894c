#!/bin/bash
# ResNet-50, batch 32,768, on 512 Knights Landing nodes (You et al. 2017: 60 minutes).
#
# 3,510 steps x 32,768 images = 115.0 million images; at 32,029 images/s (62.6 a node, what You et al. reached)
# 115.0e6 / 32,029 = 3,591 s = 60 minutes = 511 node-hours. Your rate: jobs/bench_node.sh.
# Their 60 minutes are 72.4 % with next to no augmentation, on warped squares. The recipe of You's lab is another: 76.75 %
# on whole photos, with RECIPE=…/resnet50_32k_lars.toml DATA=$SCRATCH/imagenet and slots of 64 images (batch.slot_batch),
# as the batch norm over 128 images that it cites does not fit 64 images a node.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=resnet50_512knl
#SBATCH --nodes=512 --ntasks-per-node=1 --cpus-per-task=272
#SBATCH --constraint=knl,quad,cache
#SBATCH --exclusive --mem=0 --time=02:00:00
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%j.out
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet-squares} # edit 2: holds train/ and val/, from KIND=squares jobs/pack_imagenet.sh
RUN=${RUN:-${SCRATCH:-$HOME}/runs/resnet50_512knl${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}} # edit 3: checkpoints, log, status; submit again with the same one to go on
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2
RECIPE=${RECIPE:-$KNLTRAIN_ROOT/jobs/recipes/resnet50_32k_lars_crop.toml}

survive "$RUN" srun python -m knltrain train "$RECIPE" --run "$RUN" --resume auto \
  --set data.train="$DATA/train" --set data.val="$DATA/val" "$@"
