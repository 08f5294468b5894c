"""Placement from topology: the machines of this world as sysfs shows them, and what a rank on them is given."""

import json
import os
from dataclasses import asdict

import pytest
from mpirun import run_mpi

from knltrain.node.hardware import format_list, parse_list, read_topology
from knltrain.node.machine import plan
from knltrain.tell.screen import placement_lines


def sysfs(folder, cores, threads, nodes, memory_only=0):
    """A tree as of a machine: `cores` cores of `threads` threads over `nodes` NUMA nodes."""
    per_node = cores // nodes
    for cpu in range(cores * threads):
        core = cpu % cores
        place = folder / f"cpu/cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(format_list(core + cores * t for t in range(threads)) + "\n")
    for node in range(nodes + memory_only):
        mine = [c + cores * t for t in range(threads) for c in range(node * per_node, (node + 1) * per_node)]
        (folder / f"node/node{node}").mkdir(parents=True)
        (folder / f"node/node{node}/cpulist").write_text((format_list(mine) if node < nodes else "") + "\n")
        (folder / f"node/node{node}/meminfo").write_text(f"Node {node} MemTotal:       16777216 kB\n")
    return read_topology(range(cores * threads), folder)


def shown(placement):
    return "\n".join(placement_lines(asdict(placement)))


def test_knl__flat_mode_prefers_mcdram_and_reserves_two_cores_each(tmp_path):
    topology = sysfs(tmp_path, 68, 4, 1, memory_only=1)
    placement = plan(topology, 1, 0, {}, "Intel(R) Xeon Phi(TM) CPU 7250")
    assert placement.threads == 64 and placement.compute == list(range(64))
    assert placement.readers == sorted(c + 68 * t for t in range(4) for c in (64,)) + [65, 133, 201, 269]
    assert placement.communication == [66, 134, 202, 270, 67, 135, 203, 271]
    assert placement.memory == [1] and placement.spans == [0]
    assert "prefers NUMA node 1" in shown(placement)


def test_knl__cache_mode_leaves_memory_alone(tmp_path):
    assert plan(sysfs(tmp_path, 68, 4, 1), 1, 0, {}, "Xeon Phi").memory == []


def test_xeon_max__snc4_eight_ranks_share_a_mask_by_numa_node(tmp_path):
    topology = sysfs(tmp_path, 112, 2, 8, memory_only=8)
    placements = [plan(topology, 8, i, {}, "Intel(R) Xeon(R) CPU Max 9480") for i in range(8)]
    assert [placement.spans for placement in placements] == [[i] for i in range(8)]
    assert all(placement.threads == 12 and placement.memory == list(range(8, 16)) for placement in placements)
    used = [cpu for p in placements for cpu in (*p.compute, *p.communication, *p.readers)]
    assert len(used) == len(set(used))


def test_epyc__memory_without_cpus_of_another_kind_is_not_preferred(tmp_path):
    assert plan(sysfs(tmp_path, 64, 2, 4, memory_only=1), 1, 0, {}, "AMD EPYC 9654").memory == []


def test_laptop__few_cores_are_all_for_compute(tmp_path):
    topology = sysfs(tmp_path, 4, 2, 1)
    placements = [plan(topology, 2, i, {}) for i in (0, 1)]
    assert [placement.compute for placement in placements] == [[0, 1], [2, 3]]
    assert not placements[0].communication and "shared with compute" in shown(placements[0])


def test_more_ranks_than_cores__share(tmp_path):
    topology = sysfs(tmp_path, 2, 1, 1)
    placements = [plan(topology, 5, i, {}) for i in (0, 4)]
    assert [placement.threads for placement in placements] == [1, 1]


def test_overrides__every_line(tmp_path):
    topology = sysfs(tmp_path, 16, 1, 2)
    environment = {"KNLTRAIN_COMPUTE_CPUS": "0-5", "KNLTRAIN_READER_CPUS": "6", "KNLTRAIN_COMMUNICATION_CPUS": "7"}
    environment |= {"KNLTRAIN_MEMORY": "1", "KNLTRAIN_THREADS": "3", "KNLTRAIN_BIND": "1"}
    placement = plan(topology, 1, 0, environment)
    assert (placement.compute, placement.readers, placement.communication) == ([0, 1, 2, 3, 4, 5], [6], [7])
    assert placement.memory == [1] and placement.threads == 3 and placement.bound


def test_threads__of_the_first_variable_that_is_set(tmp_path):
    topology, environment = sysfs(tmp_path, 16, 1, 2), {"OMP_NUM_THREADS": "5,2"}
    for name, threads in (("OMP_NUM_THREADS", 5), ("NUMBA_NUM_THREADS", 6), ("KNLTRAIN_THREADS", 7)):
        environment[name] = environment.get(name, str(threads))
        placement = plan(topology, 1, 0, environment)
        assert placement.threads == threads and name in shown(placement)
    with pytest.raises(ValueError, match="OMP_NUM_THREADS.*'many'"):
        plan(topology, 1, 0, {"OMP_NUM_THREADS": "many"})


@pytest.mark.parametrize(("name", "text"), [("COMPUTE_CPUS", "0-99"), ("READER_CPUS", "a"), ("MEMORY", "9")])
def test_overrides__that_cannot_be_are_one_line(tmp_path, name, text):
    with pytest.raises(ValueError, match=f"KNLTRAIN_{name}.*expected"):
        plan(sysfs(tmp_path, 4, 1, 1), 1, 0, {f"KNLTRAIN_{name}": text})


def test_lists__are_inverse():
    assert parse_list(format_list([0, 1, 2, 7, 9, 10])) == [0, 1, 2, 7, 9, 10] and parse_list("") == []


def test_unknown_system__is_one_node_of_cores(tmp_path):
    topology = read_topology([3, 5], tmp_path)
    assert topology.cores == ((3,), (5,)) and list(topology.nodes) == [0]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_bind__two_ranks_are_pinned_apart():
    script = "import os; from knltrain.comm import world; from knltrain.node.machine import take_share; c = world();"
    script += "p = take_share(c); all = c.gather([sorted(os.sched_getaffinity(0)), p.compute]);"
    script += "print(all) if c.rank == 0 else None"
    result = run_mpi(2, "-c", script, KNLTRAIN_BIND="1")
    (mask0, compute0), (mask1, compute1) = json.loads(result.stdout)
    assert mask0 == compute0 and mask1 == compute1 and not set(mask0) & set(mask1), result.stderr
