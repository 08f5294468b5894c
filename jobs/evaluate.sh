#!/bin/bash
# Top-1 and top-5 of a run, every image of the validation set once.
#
# 50,000 images, a forward pass each: about a third of the training rate's time, minutes on 8 nodes.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=evaluate
#SBATCH --nodes=8 --ntasks-per-node=1 --cpus-per-task=272
#SBATCH --exclusive --mem=0 --time=00:30:00
#SBATCH --open-mode=append --output=%x-%j.out
RUN=${RUN:-${SCRATCH:-$HOME}/runs/alexnet_512knl} # edit 2: a run folder, or one checkpoint in it
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet-squares}  # edit 3: holds val/, packed as the run's
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2

srun python -m knltrain evaluate "$RUN" --data "$DATA/val" "$@"
