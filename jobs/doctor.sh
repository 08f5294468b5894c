#!/bin/bash
# What is wrong with these nodes before a long job finds out: a table, and exit code 1 where something is.
#
# Under a minute on 512 nodes; submit it with the layout you mean to train with, as in sbatch -N 512 jobs/doctor.sh.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=doctor
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=272
#SBATCH --exclusive --mem=0 --time=00:10:00
#SBATCH --open-mode=append --output=%x-%j.out
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet} # edit 2: holds train/
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2

srun python -m knltrain doctor --data "$DATA/train" "$@"
