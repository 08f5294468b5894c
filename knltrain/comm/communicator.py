"""Who is there: one process alone, or the ranks of MPI. The only file that imports mpi4py.

Both communicators have the same methods; the trainer does not know which one it holds. Numbers go by the upper-case
calls of mpi4py (buffers, never pickled); small objects for start-up and for errors go by `gather`.
"""

import json
import os
import sys
import threading
import time

import numpy as np

# how launchers say how many ranks they started, and which this one is: mpiexec of MPICH and Intel, Open MPI, a direct
# srun; the first counts
_LAUNCHED = {
    "PMI_SIZE": "PMI_RANK", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
}  # fmt: skip
_PAGE = 4096
_LOOKS = 200  # at a message before sleeping between looks: about 100 us
_SHM = "/dev/shm"  # where MPI libraries on Linux make shared windows


class Serial:
    """One rank, no MPI: everything a communicator does, done with nobody."""

    rank, size = 0, 1
    threads_may_call = True
    sent_bytes = 0
    library = "no MPI"

    def exchange(self, out: np.ndarray, to: int, into: np.ndarray, source: int):
        raise RuntimeError(f"one rank has no peer {to} to exchange with; expected this to be called under mpiexec")

    def trade(self, sends: list, receives: list):
        raise RuntimeError("one rank has no peers to trade with; expected this to be called under mpiexec")

    def broadcast(self, array: np.ndarray):
        """Give every rank rank 0's numbers, in place."""

    def sum(self, array: np.ndarray, blocking: bool = True):
        """array = sum over ranks, in place, by MPI's own Allreduce or Iallreduce."""

    def gather(self, value) -> list:
        """Every rank's small JSON-able value, in rank order, on every rank."""
        return [value]

    def barrier(self):
        """Wait for all ranks."""

    def sleep_until_all(self):
        """Wait for all ranks, for seconds, and leave them the cores."""

    def node(self, pretended: int = 0) -> "Serial":
        """The ranks that share memory with this one."""
        return self

    def window(self, nbytes: int) -> np.ndarray | None:
        """Memory that all ranks of this communicator see: (size, nbytes or more) uint8, zeros, row r for rank r."""
        return np.zeros((1, nbytes), np.uint8)

    def close(self):
        """Give back all windows, together with all other ranks; nobody may touch one any more."""

    def abort(self, code: int):
        """End all ranks now with an exit code."""
        sys.stderr.flush()
        os._exit(code)


class World:
    """Ranks of MPI on a communicator of our own, so that nobody else's messages mix with ours.

    The ranks of a node are neighbours in number, whatever the launcher did: the first levels of the summation tree
    then lie inside nodes.
    """

    def __init__(self, mpi, comm, windows=None):
        self._mpi, self._comm = mpi, comm
        self.rank, self.size = comm.rank, comm.size
        self.threads_may_call = mpi.Query_thread() == mpi.THREAD_MULTIPLE
        self.sent_bytes = 0
        self._windows = [] if windows is None else windows  # of this communicator and those made from it

    @classmethod
    def of_all(cls, mpi) -> "World":
        """All ranks of MPI_COMM_WORLD, numbered node after node."""
        everybody = mpi.COMM_WORLD
        node = everybody.Split_type(mpi.COMM_TYPE_SHARED, everybody.rank)
        first = np.array([everybody.rank], np.int64)
        node.Bcast(first, 0)
        return cls(mpi, everybody.Split(0, int(first[0]) * everybody.size + everybody.rank))

    def exchange(self, out: np.ndarray | None, to: int, into: np.ndarray | None, source: int):
        """Send `out` to rank `to` and receive `into` from rank `source`, contiguous; None: only the other half."""
        self.trade([] if out is None else [(out, to)], [] if into is None else [(into, source)])

    def trade(self, sends: list[tuple[np.ndarray, int]], receives: list[tuple[np.ndarray, int]]):
        """Send (array, to rank) and receive (array, from rank) all at once; contiguous, in order between two ranks.

        Waits as a guest on a busy machine: it looks for a moment, then sleeps between looks. (MPI's blocking calls
        spin, and would take the core from a thread that computes.)
        """
        requests = [self._comm.Irecv(into, source) for into, source in receives]
        for out, to in sends:
            requests.append(self._comm.Isend(out, to))
            self.sent_bytes += out.nbytes
        for _ in range(_LOOKS):
            if self._mpi.Request.Testall(requests):
                return
        self._sleep_until(requests, 300e-6)

    def _sleep_until(self, requests, longest: float):
        pause = 20e-6
        while not self._mpi.Request.Testall(requests):
            time.sleep(pause)
            pause = min(1.5 * pause, longest)

    def broadcast(self, array: np.ndarray):
        """Give every rank rank 0's numbers, in place."""
        self._comm.Bcast(array, 0)

    def sum(self, array: np.ndarray, blocking: bool = True):
        """array = sum over ranks, in place, by MPI's own Allreduce or Iallreduce."""
        if blocking:
            self._comm.Allreduce(self._mpi.IN_PLACE, array)
        else:
            self._comm.Iallreduce(self._mpi.IN_PLACE, array).Wait()

    @property
    def library(self) -> str:
        """Name and version of the MPI library."""
        return self._mpi.Get_library_version().splitlines()[0].strip().rstrip(",")

    def gather(self, value) -> list:
        """Every rank's small JSON-able value, in rank order, on every rank."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.zeros(self.size, np.int32)
        self._comm.Allgather(np.array([text.size], np.int32), sizes)
        everything = np.empty(int(sizes.sum()), np.uint8)
        self._comm.Allgatherv(text, [everything, sizes])
        ends = np.cumsum(sizes)
        return [json.loads(everything[end - size : end].tobytes()) for size, end in zip(sizes, ends, strict=True)]

    def barrier(self):
        """Wait for all ranks."""
        self._comm.Barrier()

    def sleep_until_all(self):
        """Wait for all ranks, for seconds, and leave them the cores."""
        self._sleep_until([self._comm.Ibarrier()], 20e-3)

    def node(self, pretended: int = 0) -> "World":
        """The ranks that share memory with this one; pretended: cut those of a machine into so many nodes."""
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, self.rank)
        if pretended > 1:
            node = node.Split(node.rank * min(pretended, node.size) // node.size, node.rank)
        return World(self._mpi, node, self._windows)

    def window(self, nbytes: int) -> np.ndarray | None:
        """Memory that all ranks of this communicator see: (size, nbytes or more) uint8, zeros, row r meant for rank r.

        Rows are whole pages, and contiguous. The communicator must come from `node`. None, on all its ranks, where the
        machine has too little shared memory (a container's /dev/shm is often 64 MB): without this check the first touch
        would be a bus error.
        """
        row = -(-nbytes // _PAGE) * _PAGE
        enough = True
        if os.path.isdir(_SHM):
            free = os.statvfs(_SHM)
            enough = free.f_bavail * free.f_frsize > 1.05 * self.size * row
        if not all(self.gather(enough)):
            return None
        window = self._mpi.Win.Allocate_shared(row, 1, comm=self._comm)
        self._windows.append(window)
        address = window.Shared_query(0)[0].address
        memory = self._mpi.memory.fromaddress(address, self.size * row)
        rows = np.frombuffer(memory, np.uint8).reshape(self.size, row)
        rows[self.rank] = 0  # the first touch: a page lies near the rank that owns it
        self.barrier()
        return rows

    def close(self):
        """Give back all windows, together with all other ranks; nobody may touch one any more.

        MPICH over OFI aborts in MPI_Finalize where one is left ("fabricclose failed"), after all work is done.
        """
        while self._windows:
            self._windows.pop().Free()

    def abort(self, code: int):
        """End all ranks now with an exit code."""
        sys.stdout.flush()
        sys.stderr.flush()
        last_resort = threading.Timer(3.0, os._exit, [code])  # where MPI itself hangs
        last_resort.daemon = True
        last_resort.start()
        self._mpi.COMM_WORLD.Abort(code)


def launched() -> tuple[int | None, int]:
    """Number of this rank and of all, as the launcher says: MPI may number them otherwise, or not be there yet."""
    for size, rank in _LAUNCHED.items():
        if os.environ.get(size, "").isdigit():
            return int(os.environ[rank]) if os.environ.get(rank, "").isdigit() else None, int(os.environ[size])
    return None, 1


def world():
    """The communicator of this run: MPI where this process was launched under it, else Serial.

    Raises ValueError when the launcher says it started several ranks and MPI says it has another number (a launcher
    of another MPI than the library: every rank would train alone), or when there is no MPI library at all. Where SLURM
    gave the job several tasks and no launcher started them, that is said.
    """
    _, size = launched()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if size > 1:
            raise ValueError(
                f"the launcher started {size} ranks and no MPI library could be loaded ({error}); "
                "install one: pip install mpich"
            ) from None
        return Serial()
    if MPI.COMM_WORLD.size != size and size > 1:
        raise ValueError(
            f"the launcher started {size} ranks and MPI sees {MPI.COMM_WORLD.size} "
            f"({MPI.Get_library_version().splitlines()[0]}): use the mpiexec or srun --mpi that belongs to this library"
        )
    if MPI.COMM_WORLD.size > 1:
        return World.of_all(MPI)
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks not in ("0", "1") and not any(name in os.environ for name in _LAUNCHED):
        text = f"this job has {tasks} tasks and this process is alone: to use them start it with srun or mpiexec"
        print(f"knltrain: note: {text}", file=sys.stderr)
    return Serial()
