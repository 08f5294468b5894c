"""`knltrain bench overlap`: how much of the gradient exchange hides behind the backward pass.

The same step in turn: alone, without an exchange; with one in its own thread; with one between the layers; and the last
two again on a slower wire, which is pretended by sleeping. Seconds are those of the slowest rank, medians over turns;
hidden is the share of the exchange's time in which nobody waited for it, on the rank where that is least.
"""

import json
import statistics
import time

import numpy as np

from ..comm import Exchange, Reducer, Update
from .ceiling import machine_line
from .workload import LEARNING_RATE, Workload

TURNS = 7
TURN_S = 0.2  # of each way in a turn, at least one step


def run(comm, model, slot_batch, options=None, delay=0.6, bucket_bytes=0, algorithm="auto", wire="fp32", as_json=False):
    """Measure on all ranks; rank 0 prints.

    delay: what the pretended wire takes for all gradients, as a share of the backward pass; 0 leaves it out.
    Raises ValueError for one rank, an unknown model or option, or a delay below 0.
    """
    if comm.size == 1:
        raise ValueError("found one rank; expected several: mpiexec -n 2 knltrain bench overlap")
    if delay < 0:
        raise ValueError(f"found --delay {delay}, expected a share of the backward pass, 0 or more")
    exchange = Exchange(comm, algorithm, wire)
    ways = _Ways(Workload(model, slot_batch, options, exchange.allocate), exchange, bucket_bytes)
    try:
        record = _measure(comm, ways, delay)
    finally:
        ways.close()
    record |= {"model": model, "slot_batch": slot_batch, "ranks": comm.size, "wire": wire}
    record |= {"gradient_bytes": ways.bytes, "bucket_bytes": ways.hidden.bucket_bytes, "exchange": str(exchange)}
    if comm.rank == 0:
        print(json.dumps(record, indent=1) if as_json else _table(record))


class _Ways:
    """The step of a workload with and without an exchange; all ways share weights, gradients and buckets."""

    def __init__(self, work, exchange, bucket_bytes):
        self.work, self.exchange = work, exchange
        self.parameters = parameters = work.model.parameters
        self.hidden = Reducer(parameters, exchange, 1, bucket_bytes)
        self.between = Reducer(parameters, exchange, 1, self.hidden.bucket_bytes, overlap=False)
        self.bytes = 4 * parameters.gradient.size
        self.exposed = self.unseen = 0.0  # seconds of exchange since somebody set them to 0

    def alone(self) -> float:
        """A step that exchanges nothing; returns the seconds of its backward pass."""
        self.work.begin_step()
        begin = time.perf_counter()
        self.work.model.backward()
        seconds = time.perf_counter() - begin
        self.work.end_step()
        return seconds

    def exchanged(self, reducer):
        """A step whose gradients are summed over the ranks."""
        self.work.begin_step()
        self.work.model.backward(reducer.ready)
        reducer.end_slot()
        Update(self.parameters, self.work.optimizer, reducer).step(LEARNING_RATE)
        self.parameters.update_statistics(self.exchange.comm.size)
        seconds = reducer.seconds()
        self.exposed += seconds["exchange_exposed_s"]
        self.unseen += seconds["exchange_hidden_s"]

    def close(self):
        self.hidden.close()
        self.between.close()


def _measure(comm, ways, delay) -> dict:
    ways.alone()
    backward = max(comm.gather(statistics.median(ways.alone() for _ in range(3))))
    slow = ways.bytes / (delay * backward) if delay else 0.0
    calls = {
        "alone": (0.0, ways.alone),
        "hidden": (0.0, lambda: ways.exchanged(ways.hidden)),
        "between": (0.0, lambda: ways.exchanged(ways.between)),
    }
    if delay:
        calls |= {f"{name}_delayed": (slow, calls[name][1]) for name in ("hidden", "between")}
    seconds, shares = {name: [] for name in calls}, {name: [] for name in calls}
    steps = max(comm.gather(max(1, round(TURN_S / _block(comm, ways, *calls["hidden"], 1)))))
    for turn in range(TURNS):
        for name in list(calls) if turn % 2 else reversed(calls):
            ways.exposed = ways.unseen = 0.0
            seconds[name].append(_block(comm, ways, *calls[name], steps))
            shares[name].append(ways.unseen / max(ways.exposed + ways.unseen, 1e-9))
    slowest = np.max(comm.gather([seconds[name] for name in calls]), axis=0)  # (ways, turns)
    times = dict(zip(calls, slowest, strict=True))
    least = dict(zip(calls, np.min(comm.gather([shares[name] for name in calls]), axis=0), strict=True))
    record = {"backward_seconds": backward, "steps_a_turn": steps}
    record |= {f"{name}_seconds": float(np.median(mine)) for name, mine in times.items()}
    record["hidden_share"] = float(np.median(least["hidden"]))
    if delay:
        record["delay_seconds"] = delay * backward
        record["growth_by_delay"] = float(np.median(times["hidden_delayed"] / times["hidden"])) - 1
        record["hidden_share_delayed"] = float(np.median(least["hidden_delayed"]))
    return record


def _block(comm, ways, bandwidth, step, steps) -> float:
    """Seconds of a step."""
    ways.exchange.bandwidth = bandwidth
    comm.barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


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
