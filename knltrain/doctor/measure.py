"""Rates of this node, in a few seconds: arithmetic, memory, shards, and the network between all ranks."""

import socket
import time
from pathlib import Path

import numpy as np

from knltrain.kernels import STREAM_UNIT, aligned_zeros, product, stream

from ..data import DataSet
from ..node.machine import arithmetic_peak, best_rate
from .facts import locking

SECONDS = 0.3  # of each measurement
STREAM_BYTES, SUM_BYTES = 64 << 20, 16 << 20
SAMPLE_ROWS = 64


def measure_node(comm) -> dict:
    """fma (flop/s), stream (bytes/s read) of this rank while all ranks measure, as they will train.

    And pairs (flop/s), of bf16, where the CPU multiplies them.
    """
    memory = aligned_zeros(STREAM_BYTES // 4 // STREAM_UNIT * STREAM_UNIT)
    memory[:] = 1
    stream("read", memory, memory)
    comm.barrier()
    rates = {"fma": arithmetic_peak(SECONDS)}
    if product("bf16") != "fp32":
        rates["pairs"] = arithmetic_peak(SECONDS, "bf16")
    return rates | {"stream": best_rate(lambda: stream("read", memory, memory), SECONDS)}


def measure_network(comm) -> dict:
    """Of the sum over all ranks: latency (s) of 4 bytes, bandwidth (bytes/s) of SUM_BYTES; and of links, see there."""
    if comm.size == 1:
        return {}
    small, large = np.zeros(1, np.float32), np.zeros(SUM_BYTES // 4, np.float32)
    times = {}
    for name, array, count in (("latency", small, 50), ("large", large, 5)):
        comm.sum(array)
        comm.barrier()
        begin = time.perf_counter()
        for _ in range(count):
            comm.sum(array)
        times[name] = (time.perf_counter() - begin) / count
    return {"latency": times["latency"], "bandwidth": SUM_BYTES / times["large"]} | measure_link(comm)


def measure_link(comm) -> dict:
    """On the first rank of each host: link (bytes/s to the next host while all send at once) and link_to, its name."""
    hosts = comm.gather(socket.gethostname())
    firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
    if len(firsts) == 1 or comm.rank not in firsts:
        return {}
    place, out, into = firsts.index(comm.rank), np.zeros(SUM_BYTES, np.uint8), np.empty(SUM_BYTES, np.uint8)
    following, before = firsts[(place + 1) % len(firsts)], firsts[place - 1]
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        comm.exchange(out, following, into, before)
        seconds.append(time.perf_counter() - begin)
    return {"link": SUM_BYTES / min(seconds), "link_to": hosts[following]}


def examine_data(folder: Path, comm) -> dict:
    """Open the shards, read and check a sample of rows of this rank's own part: their rate, or what is wrong."""
    try:
        dataset = DataSet(folder)
        rows = np.random.default_rng(comm.rank).integers(0, len(dataset), SAMPLE_ROWS)
        begin = time.perf_counter()
        nbytes = sum(dataset.read(int(row)).nbytes for row in rows)
        seconds = time.perf_counter() - begin
    except (ValueError, OSError, ImportError) as error:
        return {"data_error": str(error), "locking": "yes"}
    files = sorted(Path(folder).glob("*.h5"))
    size = sum(path.stat().st_size for path in files)
    shards = f"{len(dataset)} images in {len(files)} shards, {size / 1e9:.2f} GB, sample of checksums right"
    return {"shards": shards, "read": nbytes / seconds, "locking": locking(folder)}
