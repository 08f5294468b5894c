#!/bin/bash
# The network: sizes from 1 KB to 256 MB, every algorithm and wire format, against MPI's own.
#
# A few minutes; submit it with the node count you mean to train on, as in sbatch -N 512 jobs/bench_allreduce.sh.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=bench_allreduce
#SBATCH --nodes=16 --ntasks-per-node=1 --cpus-per-task=272
#SBATCH --exclusive --mem=0 --time=00:30:00
#SBATCH --open-mode=append --output=%x-%j.out
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2

srun python -m knltrain bench allreduce "$@"
