"""The judgements: each check takes the facts of all ranks and yields findings; pure, so that each can be provoked."""

import statistics
from collections import Counter
from typing import NamedTuple

OK, NOTE, WRONG = "ok", "note", "WRONG"
SLOW = 0.10  # below the median by more than this share: named
BUSY = 0.5  # below this share of what width and clock allow: said
LEAST_LINK = 0.3  # of what an interface is made for: one rank's messages, both ways at once
LEAST_MEMORY, LEAST_SHM = 2 << 30, 64 << 20
GIB = 1 << 30


class Finding(NamedTuple):
    """One line of the table; `cure` says what to do, "" where nothing is to be done."""

    check: str
    level: str
    found: str
    cure: str = ""


def world(ranks):
    """Are all ranks that were started in one world?"""
    tasks, size = ranks[0]["slurm_tasks"], len(ranks)
    if tasks and tasks != size:
        cure = "every rank would train alone: srun --mpi=pmi2 (MPICH) or pmix (Open MPI), or the mpiexec of the library"
        yield Finding("world", WRONG, f"MPI sees {size} ranks, SLURM started {tasks}", cure)
    else:
        per_node = sorted(Counter(rank["host"] for rank in ranks).values())
        nodes = len(per_node)
        level = OK if per_node[0] == per_node[-1] else NOTE
        cure = "" if level == OK else "give every node as many ranks: --ntasks-per-node"
        yield Finding("world", level, f"{size} ranks on {nodes} nodes, {per_node[0]} to {per_node[-1]} a node", cure)


def mpi(ranks):
    """One library everywhere, and may threads call it?"""
    yield from _alike("mpi", ranks, "library", "one environment for all nodes: another MPI library was found on some")
    if not all(rank["threads_may_call"] for rank in ranks):
        cure = "communication cannot overlap: MPICH_MAX_THREAD_SAFETY=multiple, or another build"
        yield Finding("mpi threads", WRONG, "less than MPI_THREAD_MULTIPLE", cure)


def versions(ranks):
    """The same software everywhere."""
    yield from _alike("versions", ranks, "versions", "one environment for all nodes: versions differ")


def openmp(ranks):
    """Is Intel's OpenMP loaded, and do KMP_* act?"""
    for rank in ranks:
        if rank["layer"] != "omp":
            cure = "install the system's libgomp (Debian: libgomp1): threads start 50 times slower without"
            yield Finding("openmp", WRONG, f"{rank['host']}: Numba's {rank['layer']} layer", cure)
            return
        if "libiomp5" not in rank["openmp"]:
            ignored = f", {', '.join(rank['kmp'])} ignored" if rank["kmp"] else ""
            cure = "pip install intel-openmp" if rank["kmp"] else ""
            found = f"{rank['host']}: {', '.join(rank['openmp']) or 'no runtime'}{ignored}"
            yield Finding("openmp", WRONG if rank["kmp"] else NOTE, found, cure or "KMP_* would not act; OMP_* do")
            return
    yield Finding("openmp", OK, f"omp on libiomp5, KMP_* act ({', '.join(ranks[0]['kmp']) or 'none set'})")


def affinity(ranks):
    """Has every rank cores of its own, enough for its threads?"""
    bad = False
    for host, group in _by_host(ranks).items():
        cpus = {cpu for rank in group for cpu in rank["mask"]}
        threads, cores = sum(rank["threads"] for rank in group), sum(rank["cores"] for rank in group)
        if len(cpus) == 1 and group[0]["node_cpus"] > 1:
            cure = "all threads share it: srun -c CPUS and SRUN_CPUS_PER_TASK (jobs/env.sh), mpiexec -bind-to none"
            yield Finding("affinity", WRONG, f"{host}: one CPU of {group[0]['node_cpus']} for everything", cure)
            bad = True
        elif threads > max(cores, 1) or threads > len(cpus):
            cure = "fewer ranks a node or KNLTRAIN_THREADS / NUMBA_NUM_THREADS: threads of one core take turns"
            found = f"{host}: {threads} threads of {len(group)} ranks on {min(cores, len(cpus))} cores"
            yield Finding("affinity", WRONG, found, cure)
            bad = True
    if not bad:
        least = min(ranks, key=lambda rank: rank["threads"])
        yield Finding("affinity", OK, f"{least['threads']} threads a rank, {least['cores']} cores")


def cpu(ranks):
    """One kind of CPU, its widest vectors in use."""
    yield from _alike("cpu", ranks, "processor", "the slowest kind sets the pace: --constraint")
    for rank in ranks:
        if "avx512f" in rank["flags"] and rank["kernels"] != "avx512":
            cure = "unset NUMBA_CPU_NAME and NUMBA_CPU_FEATURES"
            yield Finding("vectors", WRONG, f"{rank['host']}: {rank['kernels']} kernels on a CPU with AVX-512", cure)
            return
        if rank["kernels"] == "generic" and rank["processor"]:
            yield Finding("vectors", NOTE, f"{rank['host']}: generic kernels, no AVX2", "correct, but slow")
            return
    known = [name for name, flag in (("vectors", "avx512_bf16"), ("tiles", "amx_bf16")) if flag in ranks[0]["flags"]]
    yield Finding("vectors", OK, f"{ranks[0]['kernels']} kernels, bf16 instructions: {' and '.join(known) or 'none'}")


def numa(ranks):
    """One rank in one NUMA domain; fast memory used where there is some."""
    for rank in ranks:
        if len(rank["spans"]) > 1:
            cure = f"start {len(rank['spans'])} ranks where there is one: --ntasks-per-node"
            yield Finding("numa", NOTE, f"{rank['host']}: a rank spans NUMA nodes {rank['spans']}", cure)
            break
    for rank in ranks:
        if rank["memory_only"] and not rank["memory_preferred"]:
            cure = "if it is the fast one (KNL, Xeon Max): KNLTRAIN_MEMORY=" + ",".join(map(str, rank["memory_only"]))
            yield Finding("memory mode", NOTE, f"{rank['host']}: memory of nodes {rank['memory_only']} unused", cure)
            return
    preferred = ranks[0]["memory_preferred"]
    yield Finding("memory mode", OK, f"prefers NUMA nodes {preferred}" if preferred else "no memory without CPUs")


def huge_pages(ranks):
    """Transparent huge pages: the arena is walked with strides."""
    if any(rank["huge_pages"] == "never" for rank in ranks):
        cure = "ask for echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        yield Finding("huge pages", NOTE, "never", cure)
    else:
        yield Finding("huge pages", OK, ranks[0]["huge_pages"] or "not told")


def memory(ranks):
    """Enough memory for a rank; enough shared memory for MPI."""
    for host, group in _by_host(ranks).items():
        free = group[0]["memory_free"] / len(group)
        if free < LEAST_MEMORY:
            cure = "--mem=0, fewer ranks a node, or find who holds it"
            yield Finding("memory", WRONG, f"{host}: {free / GIB:.1f} GiB a rank free", cure)
            return
    for rank in ranks:
        if rank["shm_free"] is not None and rank["shm_free"] < LEAST_SHM:
            cure = "remove what killed jobs left in /dev/shm; in a container --shm-size=4g"
            yield Finding("shared memory", WRONG, f"{rank['host']}: {rank['shm_free'] >> 20} MiB in /dev/shm", cure)
            return
    yield Finding("memory", OK, f"{min(rank['memory_free'] for rank in ranks) / GIB:.0f} GiB a node free, at least")


def kernel_cache(ranks):
    """Are kernels compiled already?"""
    cold = sorted({rank["host"] for rank in ranks if not rank["compiled"]})
    if cold:
        cure = "knltrain warmup RECIPE once per kind of node: else the start takes a minute"
        yield Finding("kernel cache", NOTE, f"cold on {_names(cold)}: {ranks[0]['cache']}", cure)
    else:
        yield Finding("kernel cache", OK, f"{min(rank['compiled'] for rank in ranks)} functions in {ranks[0]['cache']}")


def data(ranks):
    """Can every rank read what it says it holds?"""
    broken = [rank for rank in ranks if rank.get("data_error")]
    if broken:
        yield Finding("data", WRONG, f"{broken[0]['host']}: {broken[0]['data_error']}", "knltrain verify, pack again")
    elif "shards" in ranks[0]:
        yield from _alike("data", ranks, "shards", "the nodes do not see the same files")
    for rank in ranks:
        locks = rank.get("locking", "yes")
        if locks not in ("yes", "read-only") and rank["hdf5_locking"].upper() not in ("FALSE", "0"):
            cure = "export HDF5_USE_FILE_LOCKING=FALSE: shards are only read"
            yield Finding("file locks", WRONG, f"{rank['host']}: {locks}", cure)
            return


MEASURED = {  # key of the facts: name, unit, divisor, what to do about a slow node
    "fma": ("arithmetic", "GFLOP/s", 1e9, "clock, heat or a neighbour: --exclude it"),
    "pairs": ("bf16 products", "TFLOP/s", 1e12, "clock, heat or a neighbour: --exclude it"),
    "stream": ("memory", "GB/s", 1e9, "memory mode or a neighbour: --exclude it"),
    "read": ("shards", "MB/s", 1e6, "its path to the file system: --exclude it, or stage the data"),
}


def slow_nodes(ranks):
    """Measured rates: nodes far below the median, by name."""
    for key, (name, unit, scale, cure) in MEASURED.items():
        if key not in ranks[0]:
            continue
        rates = {host: statistics.fmean(rank[key] for rank in group) for host, group in _by_host(ranks).items()}
        median = statistics.median(rates.values())
        slow = sorted((rate, host) for host, rate in rates.items() if rate < (1 - SLOW) * median)
        found = f"{median / scale:.3g} {unit} a rank, median"
        if slow:
            named = ", ".join(f"{host} {rate / median - 1:+.0%}" for rate, host in slow[:8])
            yield Finding(name, NOTE if key == "read" else WRONG, f"{found}; slow: {named}", cure)
        elif key == "fma" and ranks[0]["clock"]:
            yield _of_its_cpu(name, found, ranks[0], median)
        else:
            yield Finding(name, OK, found)


def _of_its_cpu(name, found, rank, rate):
    """Equal everywhere is not yet well: every node may be busy with something else."""
    cores = min(rank["threads"], rank["cores"])
    share = rate / (cores * rank["clock"] * rank["flops_per_cycle"])
    found += f", {share:.0%} of what {cores} cores at {rank['clock'] / 1e9:.1f} GHz allow"
    cure = "something else runs on these cores (top), or they are throttled, or the CPU has one FMA unit a core"
    return Finding(name, OK if share >= BUSY else NOTE, found, cure)


def network(ranks):
    """Latency and bandwidth of the allreduce over all ranks, as rank 0 saw them."""
    if "latency" in ranks[0]:
        found = f"{ranks[0]['latency'] * 1e6:.0f} us for 4 bytes, {ranks[0]['bandwidth'] / 1e9:.2f} GB/s of 16 MB"
        yield Finding("allreduce", OK, found)


def links(ranks):
    """Does what carries messages between nodes reach what the fastest interface is made for?"""
    measured = [rank for rank in ranks if "link" in rank]
    if not measured:
        return
    slow = min(measured, key=lambda rank: rank["link"])
    rate, speeds = slow["link"] * 8e-9, slow["interfaces"]
    found = f"{rate:.2f} Gb/s from {slow['host']} to {slow['link_to']}, the slowest of {len(measured)}"
    if not speeds:
        yield Finding("links", OK, f"{found}; the system says of no interface how fast it is")
        return
    name, fastest = max(speeds.items(), key=lambda item: item[1])
    found += f"; {name} is made for {fastest:g}"
    cure = f"MPI goes another way: UCX_NET_DEVICES={name}, or with libfabric FI_PROVIDER and FI_TCP_IFACE={name}"
    if fastest > 2 and rate < 1.05:
        yield Finding("links", WRONG, f"{found}: a fallback to 1 Gb/s carries the job", cure)
    elif rate < LEAST_LINK * fastest:
        yield Finding("links", NOTE, found, cure)
    else:
        yield Finding("links", OK, found)


CHECKS = (
    *(world, mpi, versions, openmp, affinity, cpu, numa, huge_pages),
    *(memory, kernel_cache, data, slow_nodes, network, links),
)


def examine(ranks: list[dict]) -> list[Finding]:
    """All findings, in the order of CHECKS."""
    return [finding for check in CHECKS for finding in check(ranks)]


def _by_host(ranks):
    hosts = {}
    for rank in ranks:
        hosts.setdefault(rank["host"], []).append(rank)
    return hosts


def _alike(check, ranks, key, cure):
    """One value everywhere is ok; else the hosts of the rarer values are named."""
    counts = Counter(str(rank[key]) for rank in ranks)
    usual = counts.most_common(1)[0][0]
    other = next((rank for rank in ranks if str(rank[key]) != usual), None)
    if other is None:
        yield Finding(check, OK, usual.replace("'", "").strip("{}"))
    else:
        hosts = sorted({rank["host"] for rank in ranks if str(rank[key]) != usual})
        yield Finding(check, WRONG, f"{_names(hosts)}: {other[key]}; the others: {usual}", cure)


def _names(hosts):
    return ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
