#!/bin/bash
# A job on this machine, without SLURM: the same script and the same line, srun being mpiexec.
#
#   jobs/local.sh [-n RANKS] [-t THREADS] JOB [--set key=value ...]
#   RUN=runs/try DATA=shards jobs/local.sh -n 2 jobs/alexnet_512knl.sh --set batch.global_batch=64
set -u
ranks=2
while getopts n:t: option; do
  case $option in
  n) ranks=$OPTARG ;;
  t) export NUMBA_NUM_THREADS=$OPTARG ;;
  *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
job=${1:?jobs/local.sh: expected a job script, as in jobs/local.sh -n 2 jobs/alexnet_512knl.sh}
shift
if [ ! -f "$job" ]; then
  echo "jobs/local.sh: $job: no such job" >&2
  exit 2
fi
KNLTRAIN_ROOT=${KNLTRAIN_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
export KNLTRAIN_ROOT LOCAL_RANKS=$ranks KNLTRAIN_BIND=${KNLTRAIN_BIND:-0} # a laptop's cores are shared

# shellcheck disable=SC2329 # the job calls it
srun() { # [-N NODES] [-n RANKS] COMMAND...
  local ranks=$LOCAL_RANKS
  while [[ $1 == -[Nn] ]]; do
    [ "$1" = -N ] || ranks=$2
    shift 2
  done
  "${MPIEXEC:-mpiexec}" -n "$ranks" "$@"
}
export -f srun
exec bash "$job" "$@"
