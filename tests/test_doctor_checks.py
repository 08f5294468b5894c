"""Every check of the doctor, provoked: by the facts of sick nodes, and by real faults where that is possible."""

import json
import os

import pytest
from mpirun import run_mpi
from tinyrun import write_recipe

from knltrain.doctor.checks import CHECKS, NOTE, OK, WRONG, examine
from knltrain.doctor.facts import clock, cpu_flags, huge_pages, interfaces, loaded_openmp, locking
from knltrain.node.hardware import memory_free

HEALTHY = {
    "host": "n1", "library": "MPICH 5", "threads_may_call": True, "versions": {"numpy": "2"}, "slurm_tasks": None,
    "layer": "omp", "openmp": ["libiomp5"], "kmp": ["KMP_BLOCKTIME"], "mask": list(range(64)), "node_cpus": 64,
    "threads": 60, "cores": 64, "spans": [0], "memory_preferred": [], "memory_only": [], "processor": "Xeon Phi 7250",
    "flags": ["avx2", "fma", "avx512f"], "kernels": "avx512", "huge_pages": "madvise", "memory_free": 90 << 30,
    "shm_free": 8 << 30, "compiled": 90, "cache": "/tmp/kernels", "hdf5_locking": "", "locking": "yes",
    "fma": 4e12, "pairs": 7e12, "clock": 1.4e9, "flops_per_cycle": 64,
    "stream": 8e10, "read": 5e8, "latency": 1e-5, "bandwidth": 1e9, "shards": "100 images in 4 shards",
    "interfaces": {"eth0": 1.0, "hsn0": 100.0}, "link": 9e9, "link_to": "n9",
}  # fmt: skip


def ranks(count=4, sick=(), **change):
    """Healthy ranks on nodes n0, n1, …; those in `sick` (all if empty) have `change`."""
    chosen = range(count) if sick == () else sick
    return [HEALTHY | {"host": f"n{i}"} | (change if i in chosen else {}) for i in range(count)]


def test_healthy__nothing_is_wrong():
    findings = examine(ranks())
    assert {finding.level for finding in findings} == {OK}
    assert len(findings) >= len(CHECKS)


SICK = [
    ("world", WRONG, ranks(1, slurm_tasks=4), "MPI sees 1 ranks, SLURM started 4"),
    ("world", NOTE, [*ranks(3), HEALTHY | {"host": "n0", "threads": 1}], "1 to 2 a node"),
    ("mpi", WRONG, ranks(sick=[2], library="Open MPI 5"), "n2: Open MPI 5"),
    ("mpi threads", WRONG, ranks(sick=[1], threads_may_call=False), "less than MPI_THREAD_MULTIPLE"),
    ("versions", WRONG, ranks(sick=[3], versions={"numpy": "1"}), "n3"),
    ("openmp", WRONG, ranks(sick=[1], layer="workqueue"), "n1: Numba's workqueue layer"),
    ("openmp", WRONG, ranks(openmp=["libgomp"]), "KMP_BLOCKTIME ignored"),
    ("openmp", NOTE, ranks(openmp=["libgomp"], kmp=[]), "libgomp"),
    ("affinity", WRONG, ranks(sick=[2], mask=[5], threads=1, cores=1), "n2: one CPU of 64 for everything"),
    ("affinity", WRONG, ranks(sick=[0], threads=70), "n0: 70 threads of 1 ranks on 64 cores"),
    ("cpu", WRONG, ranks(sick=[1], processor="Xeon 6"), "n1: Xeon 6"),
    ("vectors", WRONG, ranks(kernels="avx2"), "avx2 kernels on a CPU with AVX-512"),
    ("vectors", NOTE, ranks(kernels="generic", flags=[]), "generic kernels"),
    ("numa", NOTE, ranks(sick=[3], spans=[0, 1]), "n3: a rank spans NUMA nodes [0, 1]"),
    ("memory mode", NOTE, ranks(memory_only=[1]), "memory of nodes [1] unused"),
    ("huge pages", NOTE, ranks(sick=[0], huge_pages="never"), "never"),
    ("memory", WRONG, ranks(sick=[2], memory_free=1 << 30), "n2: 1.0 GiB"),
    ("shared memory", WRONG, ranks(sick=[2], shm_free=1 << 20), "n2: 1 MiB in /dev/shm"),
    ("kernel cache", NOTE, ranks(sick=[1, 2], compiled=0), "cold on n1, n2"),
    ("data", WRONG, ranks(sick=[1], data_error="shard x: damaged"), "n1: shard x: damaged"),
    ("data", WRONG, ranks(sick=[1], shards="90 images in 4 shards"), "n1: 90 images"),
    ("file locks", WRONG, ranks(sick=[1], locking="No locks available"), "No locks available"),
    ("arithmetic", WRONG, ranks(8, sick=[5], fma=3e12), "slow: n5 -25%"),
    ("bf16 products", WRONG, ranks(8, sick=[5], pairs=4e12), "slow: n5 -43%"),
    ("arithmetic", NOTE, ranks(fma=5e11), "500 GFLOP/s a rank, median, 9% of what 60 cores at 1.4 GHz allow"),
    ("memory", WRONG, ranks(8, sick=[5], stream=4e10), "slow: n5 -50%"),
    ("links", WRONG, ranks(sick=[2], link=1.17e8), "0.94 Gb/s from n2 to n9, the slowest of 4; hsn0 is made for"),
    ("links", NOTE, ranks(sick=[1], link=1.2e9), "9.60 Gb/s from n1 to n9"),
    ("shards", NOTE, ranks(8, sick=[5], read=1e8), "slow: n5 -80%"),
]


@pytest.mark.parametrize(("check", "level", "facts", "words"), SICK, ids=[f"{s[0]}-{s[1]}-{s[3][:20]}" for s in SICK])
def test_sick__is_found_named_and_has_a_cure(check, level, facts, words):
    found = [finding for finding in examine(facts) if finding.check == check and finding.level == level]
    assert len(found) == 1 and words in found[0].found and found[0].cure, examine(facts)


def test_locks__are_no_matter_where_hdf5_is_told_not_to_lock():
    facts = ranks(locking="No locks available", hdf5_locking="FALSE")
    assert not [finding for finding in examine(facts) if finding.check == "file locks"]


def test_facts__know_how_fast_interfaces_are(tmp_path):
    cards = (("eth0", "1000", "up"), ("eth1", "25000", "down"), ("lo", "", "unknown"), ("v0", "-1", "up"))
    for name, speed, state in cards:
        (tmp_path / "class/net" / name).mkdir(parents=True)
        (tmp_path / "class/net" / name / "speed").write_text(speed + "\n")
        (tmp_path / "class/net" / name / "operstate").write_text(state + "\n")
    port = tmp_path / "class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    (port / "state").write_text("4: ACTIVE\n")
    assert interfaces(tmp_path) == {"eth0": 1.0, "mlx5_0": 100.0}


def test_facts__are_read_from_proc_and_sys(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "maps").write_text("7f00 r-xp /x/libgomp.so.1.0.0\n7f01 r-xp /x/libiomp5.so\n")
    assert loaded_openmp(tmp_path) == ["libiomp5", "libgomp"]
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 fma avx512f\n")
    assert cpu_flags(tmp_path) == ["avx2", "fma", "avx512f"] and clock(tmp_path, tmp_path) == 0
    (tmp_path / "cpuinfo").write_text("cpu MHz\t\t: 1200.5\ncpu MHz\t\t: 2596.25\n")
    assert clock(tmp_path, tmp_path) == 2596.25e6
    (tmp_path / "devices/system/cpu/cpu0/cpufreq").mkdir(parents=True)
    (tmp_path / "devices/system/cpu/cpu0/cpufreq/base_frequency").write_text("2100000\n")
    assert clock(tmp_path, tmp_path) == 2.1e9
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    assert memory_free(tmp_path, tmp_path) == 2 << 20
    (tmp_path / "fs/cgroup/memory.max").write_text("1048576\n")
    (tmp_path / "fs/cgroup/memory.current").write_text("48576\n")
    assert memory_free(tmp_path, tmp_path) == 1_000_000
    (tmp_path / "kernel/mm/transparent_hugepage").mkdir(parents=True)
    (tmp_path / "kernel/mm/transparent_hugepage/enabled").write_text("always madvise [never]\n")
    assert huge_pages(tmp_path) == "never" and huge_pages(tmp_path / "nowhere") == ""


def test_locking__of_real_folders(tmp_path):
    assert locking(tmp_path) == "yes"
    assert locking("/proc") != "yes"


# ---- the command -----------------------------------------------------------------------------------------------


def test_doctor__json_on_two_ranks(tmp_path):
    write_recipe(tmp_path)
    result = run_mpi(2, "-m", "knltrain", "doctor", "--json", "--data", str(tmp_path / "shards"))
    found = json.loads(result.stdout)
    assert len(found["ranks"]) == 2 and all(rank["fma"] > 1e8 and rank["stream"] > 1e7 for rank in found["ranks"])
    assert result.returncode == (1 if found["wrong"] else 0), result.stderr
    names = {finding["check"] for finding in found["findings"]}
    assert {"world", "mpi", "openmp", "affinity", "cpu", "memory", "data", "arithmetic", "allreduce"} <= names


def test_doctor__finds_real_faults_and_says_so_in_its_exit_code(tmp_path):
    """A process that may use one CPU only, damaged shards: what can be broken here is, for real."""
    write_recipe(tmp_path)
    shard = tmp_path / "shards" / "shard-00000.h5"
    shard.write_bytes(shard.read_bytes()[:-3000])
    script = "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    script += "from knltrain.cli import main; sys.exit(main(['doctor', '--data', sys.argv[1]]))"
    result = run_mpi(1, "-c", script, str(tmp_path / "shards"))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "WRONG  data" in result.stdout and "pack again" in result.stdout
    if os.cpu_count() > 1:
        assert "one CPU of" in result.stdout and "SRUN_CPUS_PER_TASK" in result.stdout


