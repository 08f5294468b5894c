"""`knltrain bench overlap`: how much of the gradient exchange hides behind the backward pass.

The same step in turn: alone, without an exchange; with one in its own thread; with one between the layers; and the last
two again on a slower wire, which is pretended by sleeping. Seconds are those of the slowest rank, medians over turns;
hidden is the share of the exchange's time in which nobody waited for it, on the rank where that is least.
"""

import statistics
import time
from contextlib import ExitStack, closing

import numpy as np

from ..comm import Links, Reducer, Travel, make_block
from ..node.machine import take_share
from .ceiling import machine_line
from .workload import Workload

TURNS = 7
TURN_S = 0.2  # of each way in a turn, at least one step


def run(comm, model, slot_batch, options=None, delay=0.6, bucket_bytes=0, algorithm="auto", wire="fp32"):
    """What all ranks measure, for rank 0.

    delay: what the pretended wire takes for all gradients, as a share of the backward pass; 0 leaves it out.
    Raises ValueError for one rank, an unknown model or option, or a delay below 0.
    """
    if comm.size == 1:
        raise ValueError("found one rank; expected several: mpiexec -n 2 knltrain bench overlap")
    if delay < 0:
        raise ValueError(f"found --delay {delay}, expected a share of the backward pass, 0 or more")
    take_share(comm)
    work = Workload(model, slot_batch, options, Links(comm, algorithm, wire))
    record = _measure(comm, work, bucket_bytes, delay, lambda bandwidth: Links(comm, algorithm, wire, 0, bandwidth))
    record |= {"model": model, "slot_batch": slot_batch, "ranks": comm.size, "wire": wire}
    record |= {"gradient_bytes": work.model.parameters.gradient_bytes, "exchange": str(work.model.parameters.block)}
    return (record, _table(record)) if comm.rank == 0 else None


def _measure(comm, work, bucket_bytes, delay, links) -> dict:
    """All ways share weights, gradients and buckets. links: bytes/s of a pretended wire → who sums over it."""
    parameters = work.model.parameters

    with ExitStack() as stack:

        def exchanging(block, bucket_bytes, overlap):
            reducer = Reducer(parameters, Travel(parameters, block, bucket_bytes, overlap=overlap))
            return stack.enter_context(closing(work.like(reducer=reducer)))

        ways = {"alone": work, "hidden": exchanging(parameters.block, bucket_bytes, True)}
        bucket_bytes = ways["hidden"].parts.reducer.travel.bucket_bytes
        ways["between"] = exchanging(parameters.block, bucket_bytes, False)
        work.step()
        backward = max(comm.gather(statistics.median(work.step().backward_s for _ in range(3))))
        record = {"bucket_bytes": bucket_bytes, "backward_seconds": backward}
        if delay:
            record["delay_seconds"] = delay * backward
            floats = parameters.gradient.size
            sent = 2 * parameters.block.crossing * 4 * floats
            slow = make_block(links(sent / record["delay_seconds"]), floats, of=parameters.block)
            ways["hidden_delayed"] = exchanging(slow, bucket_bytes, True)
            ways["between_delayed"] = exchanging(slow, bucket_bytes, False)
        return record | _in_turn(comm, ways)


def _in_turn(comm, ways) -> dict:
    seconds, shares = {name: [] for name in ways}, {name: [] for name in ways}
    steps = max(comm.gather(max(1, round(TURN_S / _block(comm, ways["hidden"], 1)[0]))))
    for turn in range(TURNS):
        for name in list(ways) if turn % 2 else reversed(ways):
            taken, hidden = _block(comm, ways[name], steps)
            seconds[name].append(taken)
            shares[name].append(hidden)
    slowest = np.max(comm.gather([seconds[name] for name in ways]), axis=0)  # (ways, turns)
    times = dict(zip(ways, slowest, strict=True))
    least = dict(zip(ways, np.min(comm.gather([shares[name] for name in ways]), axis=0), strict=True))
    record = {"steps_a_turn": steps} | {f"{name}_seconds": float(np.median(mine)) for name, mine in times.items()}
    record["hidden_share"] = float(np.median(least["hidden"]))
    if "hidden_delayed" in ways:
        record["growth_by_delay"] = float(np.median(times["hidden_delayed"] / times["hidden"])) - 1
        record["hidden_share_delayed"] = float(np.median(least["hidden_delayed"]))
    return record


def _block(comm, way, steps) -> tuple[float, float]:
    """Seconds of a step, and the share of its exchange that was hidden."""
    comm.barrier()
    begin = time.perf_counter()
    waits = [way.step().waits for _ in range(steps)]
    taken = (time.perf_counter() - begin) / steps
    hidden, exposed = (sum(wait[f"exchange_{name}_s"] for wait in waits) for name in ("hidden", "exposed"))
    return taken, hidden / max(hidden + exposed, 1e-9)


def _table(record) -> str:
    def line(name, what, more=""):
        extra = record[f"{name}_seconds"] / record["alone_seconds"] - 1
        return f"  {what:30} {1e3 * record[f'{name}_seconds']:9,.1f} ms" + (f"  {extra:+7.1%}{more}" if extra else "")

    lines = [
        machine_line(),
        f"{record['model']}, slot batch {record['slot_batch']}, {record['ranks']} ranks; {record['exchange']}, "
        f"{record['wire']}: {record['gradient_bytes'] / 1e6:,.1f} MB of gradients in buckets of "
        f"{record['bucket_bytes'] / 2**20:g} MiB",
        line("alone", "a step, nothing exchanged"),
        line("hidden", "in a thread of its own", f", {record['hidden_share']:.0%} hidden"),
        line("between", "between the layers"),
    ]
    if "delay_seconds" in record:
        wire, backward = 1e3 * record["delay_seconds"], 1e3 * record["backward_seconds"]
        grows = f", {record['hidden_share_delayed']:.0%} hidden; {record['growth_by_delay']:+.1%} by the wire"
        lines += [
            f"on a wire that takes {wire:,.0f} ms for all, beside a backward pass of {backward:,.0f} ms",
            line("hidden_delayed", "in a thread of its own", grows),
            line("between_delayed", "between the layers"),
        ]
    return "\n".join(lines)
