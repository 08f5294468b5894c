"""What this node is made of, read from sysfs: cores and their logical CPUs, NUMA nodes, and memory without CPUs.

Knights Landing in flat mode and Xeon Max in flat mode show their fast memory as NUMA nodes that have no CPUs;
quadrant, SNC and NPS modes show as the number of nodes that have.
"""

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

SYS = Path("/sys/devices/system")


@dataclass(frozen=True)
class Node:
    """A NUMA node: logical CPUs (none: memory alone) and bytes of memory."""

    cpus: tuple
    memory_bytes: int


@dataclass(frozen=True)
class Topology:
    """cores: the logical CPUs of each core, in the order of NUMA nodes; nodes: by number."""

    cores: tuple
    nodes: dict

    def node_of(self, cpu: int) -> int:
        """The NUMA node of a logical CPU; 0 where the system does not say."""
        return next((number for number, node in self.nodes.items() if cpu in node.cpus), 0)

    @property
    def memory_only(self) -> list[int]:
        """NUMA nodes that have memory and no CPUs."""
        return [number for number, node in self.nodes.items() if not node.cpus and node.memory_bytes]


def parse_list(text: str) -> list[int]:
    """Linux's and numactl's lists of numbers.

    >>> parse_list("0-2,5")
    [0, 1, 2, 5]
    """
    numbers = []
    for part in filter(None, text.strip().split(",")):
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise ValueError(f"found {text!r}, expected a list of numbers as in 0-3,8")
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def format_list(numbers) -> str:
    """The inverse of parse_list.

    >>> format_list([0, 1, 2, 5])
    '0-2,5'
    """
    runs = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read_topology(cpus, system: Path = SYS) -> Topology:
    """The topology of the logical CPUs `cpus`; what sysfs does not tell is taken as one core a CPU, one node."""
    cpus = set(cpus)
    nodes = {}
    for folder in sorted(system.glob("node/node[0-9]*"), key=lambda path: int(path.name[4:])):
        inside = parse_list(read_text(folder / "cpulist"))
        memory = re.search(r"MemTotal:\s*(\d+) kB", read_text(folder / "meminfo"))
        nodes[int(folder.name[4:])] = Node(tuple(inside), int(memory.group(1)) * 1024 if memory else 0)
    nodes = nodes or {0: Node(tuple(sorted(cpus)), 0)}
    whole = Topology((), nodes)
    cores, seen = [], set()
    for cpu in sorted(cpus, key=lambda cpu: (whole.node_of(cpu), cpu)):
        if cpu not in seen:
            siblings = parse_list(read_text(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")) or [cpu]
            core = tuple(sorted({cpu, *siblings} & cpus))
            cores.append(core)
            seen.update(core)
    return Topology(tuple(cores), nodes)


def read_text(path: Path) -> str:
    """What is in a file, "" where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def memory_free(proc: Path = Path("/proc"), system: Path = Path("/sys")) -> int:
    """Bytes that this process may still take: what is available, or less where a control group has a limit."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", read_text(proc / "meminfo"))
    free = int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = (read_text(system / "fs/cgroup" / name).strip() for name in ("memory.max", "memory.current"))
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def machine_facts(**more) -> dict:
    """What a number must be read with: processor, cores this process may use, versions; `more` is added as it is."""
    facts = {
        "host": platform.node(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in ("knltrain", "numpy", "numba", "mpi4py", "h5py")} | more


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
