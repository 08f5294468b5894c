# shellcheck shell=bash
# What a job needs from its machine: sourced by every job script, the one place for threads, affinity, memory, MPI and
# compiled kernels. Set a variable before `sbatch` and it wins: every line here is a default.
# A site's own lines (modules, another venv, srun's --mpi) go into a file named by KNLTRAIN_SITE.

# shellcheck source=/dev/null
[ -z "${KNLTRAIN_SITE:-}" ] || . "$KNLTRAIN_SITE"

# ---- the program: a venv beside jobs/, unless one is active -------------------------------------------------------
KNLTRAIN_ROOT=${KNLTRAIN_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
KNLTRAIN_VENV=${KNLTRAIN_VENV:-${VIRTUAL_ENV:-$KNLTRAIN_ROOT/.venv}}
[ ! -d "$KNLTRAIN_VENV/bin" ] || export PATH="$KNLTRAIN_VENV/bin:$PATH"
export PYTHONPATH="$KNLTRAIN_ROOT${PYTHONPATH:+:$PYTHONPATH}"

# ---- what srun does with it (its options as variables, so that the srun line is the laptop's) ----------------------
export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}} # SLURM 22.05 to 23.02 do not hand -c on: all threads on one core
export SLURM_KILL_BAD_EXIT=${SLURM_KILL_BAD_EXIT:-1} # a dead rank ends the step; without it 511 others wait for it
export SLURM_WAIT=${SLURM_WAIT:-60}                  # a rank that left with 0 while others hang: they end after 60 s
export SLURM_CPU_BIND=${SLURM_CPU_BIND:-cores}       # ranks of a node on cores of their own
if [ -n "${SLURM_NNODES:-}" ] && [ -n "${SLURM_NTASKS_PER_NODE:-}" ]; then # a job requeued on fewer nodes keeps its old count
  export SLURM_NTASKS=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE)) SLURM_NPROCS=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE))
fi
# srun's --mpi is left to the site's default; where that is none: export SLURM_MPI_TYPE=pmi2 (MPICH) or pmix (Open MPI)

# ---- threads ----------------------------------------------------------------------------------------------------
# A rank takes the cores of its mask, one thread a core, less one for communication and one for reading where it has
# eight or more; `knltrain doctor` prints the table. KNLTRAIN_THREADS=60 overrides.
export KNLTRAIN_BIND=${KNLTRAIN_BIND:-1}       # exclusive nodes: pin compute, communication and readers to their cores
export KMP_BLOCKTIME=${KMP_BLOCKTIME:-1}       # ms that idle threads spin: short, since other threads share the node
export KMP_HW_SUBSET=${KMP_HW_SUBSET:-1t}      # one thread a core: the FMA units are full with one
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1} # NumPy's own pools stay out

# ---- memory -------------------------------------------------------------------------------------------------------
# KNL or Xeon Max in cache mode: nothing to do. In flat mode their fast memory is a NUMA node without CPUs; a rank prefers
# it by itself, without binding, so that what does not fit goes to DDR instead of ending the run. KNLTRAIN_MEMORY=8-15
# names the nodes by hand, KNLTRAIN_MEMORY= (empty) leaves memory alone; the same as numactl --preferred-many=8-15.
ulimit -c 0 # 512 core files of 16 GB each fill a file system

# ---- MPI ----------------------------------------------------------------------------------------------------------
export MPICH_MAX_THREAD_SAFETY=${MPICH_MAX_THREAD_SAFETY:-multiple} # Cray MPICH: gives less unless asked
export HFI_NO_CPUAFFINITY=${HFI_NO_CPUAFFINITY:-1}                  # Omni-Path would bind the whole process to one core
export OMPI_MCA_btl=${OMPI_MCA_btl:-^ofi} OMPI_MCA_mtl=${OMPI_MCA_mtl:-} # Open MPI: probing OFI twice costs 1 s
[ -n "$OMPI_MCA_mtl" ] || unset OMPI_MCA_mtl
export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx}                           # says "Error" for each shared window, and means nothing
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE} # Lustre without flock: errno 37; shards are only read

# ---- start without storms ------------------------------------------------------------------------------------------
# Compiled kernels: `knltrain warmup RECIPE` on one node fills KERNELS once; a run reads it on rank 0 and broadcasts it
# to LOCAL_DIR of every node. 512 nodes that compile alike, or read one folder at once, are minutes.
export LOCAL_DIR=${LOCAL_DIR:-${TMPDIR:-/tmp}/knltrain-$(id -u)}
export KNLTRAIN_NODE_CACHE=${KNLTRAIN_NODE_CACHE:-$LOCAL_DIR/kernels}
# Packages: importing opens some thousand files per rank. BUNDLE, a tar of the venv's site-packages, is sent to every
# node's LOCAL_DIR instead:  tar -C .venv/lib/python3.*/site-packages -cf site-packages.tar .
if [ -n "${BUNDLE:-}" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  packages=$LOCAL_DIR/packages-$SLURM_JOB_ID
  # what lies there is run: on each node the folder must be ours alone, or the job ends
  srun --ntasks-per-node=1 -n "$SLURM_NNODES" python3 -I "$KNLTRAIN_ROOT/kernels/private.py" "$packages" || return 2
  sbcast --force "$BUNDLE" "$packages/all.tar" || return 2
  srun --ntasks-per-node=1 -n "$SLURM_NNODES" tar -C "$packages" -xf "$packages/all.tar" || return 2
  srun --ntasks-per-node=1 -n "$SLURM_NNODES" rm "$packages/all.tar"
  export PYTHONPATH="$KNLTRAIN_ROOT:$packages"
fi

# ---- survival ------------------------------------------------------------------------------------------------------
say() { echo "$(date +%T) [job ${SLURM_JOB_ID:-local}.${SLURM_RESTART_COUNT:-0}] $*"; }

# survive RUN COMMAND...: run a training so that it outlives its time limit and its nodes.
#   SIGUSR1 (before the time limit, --signal=B:USR1@$WARNING) and SIGTERM only make RUN/stop.LAUNCH: signals sent to 512
#   ranks kill those that are not listening yet. After USR1 the job goes back into the queue. TERM is scancel, which wants
#   it to end, or a preemption, whose grace a job that saves at once survives: SLURM then takes it as done, unless it goes
#   back into the queue by itself. How it went is what RUN/status says, not the exit code: of 512 exit codes the first one
#   counts, and srun turns it into something else. A status counts only if it repeats the name of this launch: an older
#   one, or that of another job in RUN, says nothing about us.
survive() {
  local run=$1 rc=0
  shift
  export KNLTRAIN_LAUNCH=${SLURM_JOB_ID:-local}.${SLURM_RESTART_COUNT:-0}.$$
  local left step state rest launch cause='' newest stop=$run/stop.$KNLTRAIN_LAUNCH refused=$run/refused.$KNLTRAIN_LAUNCH
  trap 'cause=limit; say "asked to stop: the ranks save and leave"; : >"$stop"' USR1
  trap 'cause=${cause:-cancel}; say "told to end: the ranks save and leave"; : >"$stop"' TERM
  trap 'cause=cancel; : >"$stop"' INT
  left=$(seconds_left)
  if [ "${left:-$((WARNING + 61))}" -le $((WARNING + 60)) ]; then # SLURM may warn a minute early
    say "the time limit leaves $left s, and the warning comes $WARNING to $((WARNING + 60)) s before it: ask for a longer --time, or a shorter warning (WARNING=60 sbatch --signal=B:USR1@60 ...)"
    return 2
  fi
  mkdir -p "$run" || return 2
  newest=$(newest_checkpoint "$run")
  say "${SLURM_JOB_NODELIST:-$(hostname)}: $*"
  "$@" &
  step=$!
  wait "$step" || rc=$?
  while kill -0 "$step" 2>/dev/null; do # a trapped signal ends a wait early
    rc=0
    wait "$step" || rc=$?
  done
  rm -f "$stop"
  if [ -e "$refused" ]; then
    say "not started: $(cat "$refused")"
    rm -f "$refused"
    return 73
  fi
  { read -r state rest && read -r launch; } 2>/dev/null <"$run/status" || launch=
  [ "$launch" = "$KNLTRAIN_LAUNCH" ] || state=none rest=
  say "the ranks ended with $rc, status: $state $rest"
  [ "$state" = "done" ] || say "newest checkpoint: $(newest_checkpoint "$run" | grep . || echo none yet); to go on from there, submit again with RUN=$run"
  if preempted; then cause=preemption; else sweep_nodes; fi # the grace may be short
  case $state in
  "done") rm -f "$run/fruitless" && return 0 ;;
  stopped | running | died | starting | none)
    [ "$cause" != cancel ] || return 143
    [ "$state" != stopped ] || [ -n "$cause" ] || return 0 # somebody made RUN/stop
    if [ "$state" != stopped ] && [ "$newest" = "$(newest_checkpoint "$run")" ]; then # once may be an accident
      if [ "$(cat "$run/fruitless" 2>/dev/null)" = "${SLURM_JOB_ID:-} $newest" ]; then
        say "no checkpoint was gained in two starts: not trying again"
        return 1
      fi
      echo "${SLURM_JOB_ID:-} $newest" >"$run/fruitless"
    fi ;;
  *) return $((rc ? rc : 1)) ;; # failed: the next attempt would end alike
  esac
  [ -n "${SLURM_JOB_ID:-}" ] || return $((rc ? rc : 75))
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${KNLTRAIN_RESTARTS:-20}" ]; then
    say "${SLURM_RESTART_COUNT:-0} restarts are enough (KNLTRAIN_RESTARTS): submit again to go on"
    return 75
  fi
  say "back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
}

fact() { # NAME: what SLURM knows of this job; nothing where there is none
  [ -z "${SLURM_JOB_ID:-}" ] || scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p"
}

preempted() { # since this start, in the time of grace
  [[ $(fact PreemptTime) == 20* && ! $(fact PreemptTime) < $(fact StartTime) && $(fact JobState) == RUNNING ]]
}

seconds_left() { # until the time limit of this job; nothing where there is none
  local end
  end=$(date -d "$(fact EndTime | grep . || echo none)" +%s 2>/dev/null) && echo $((end - $(date +%s)))
}

WARNING=${WARNING:-300} # seconds: of --signal=B:USR1@300 in the scripts

sweep_nodes() { # what killed ranks left in shared memory; srun waits for ever for a node that is gone
  [ -z "${SLURM_JOB_ID:-}" ] || timeout -k 5 20 srun --ntasks-per-node=1 -n "${SLURM_NNODES:-1}" python -m knltrain sweep >/dev/null 2>&1 || true
}

newest_checkpoint() { find "$1/checkpoints" -name 'checkpoint-*.h5' 2>/dev/null | sort | tail -n 1; }
