#!/bin/bash
# One node: every kernel against the machine's peak, then the whole training step: images/s for the jobs' sums.
#
# A few minutes. MODEL=resnet50 (default), alexnet_bn or alexnet; SLOT_BATCH images at a time.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=bench_node
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=272
#SBATCH --exclusive --mem=0 --time=00:30:00
#SBATCH --open-mode=append --output=%x-%j.out
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2

MODEL=${MODEL:-resnet50}
srun python -m knltrain bench kernels --model "$MODEL" || exit
srun python -m knltrain bench step --model "$MODEL" --slot-batch "${SLOT_BATCH:-32}" "$@"
