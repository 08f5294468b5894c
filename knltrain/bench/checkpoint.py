"""`knltrain bench checkpoint`: what a checkpoint that is written while training goes on costs the training.

Blocks of steps without one and with one, in turn. The price is the time by which a block with one is longer: the copy
of the state, for which training waits, and what the writer takes from the steps beside it until it is done.
"""

import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

from ..comm import world
from ..models.state import state
from ..run.restart import Restart
from .ceiling import clock, machine_line
from .workload import Workload

BLOCKS = 5  # turns
INTERVAL = 100  # steps between two checkpoints, over which the price is spread


def run(model, slot_batch, threads=0, options=None, folder=Path()) -> tuple[dict, str]:
    """What it costs with checkpoints in `folder`. Raises ValueError for an unknown model or option."""
    work = Workload(model, slot_batch, options, threads=threads)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-checkpoint-") as temporary:
        how = SimpleNamespace(keep_checkpoints=1, checkpoint_every_minutes=0)
        restart = Restart(Path(temporary), work, world(), {}, how, print)
        try:
            record = _measure(work, restart)
        finally:
            restart.close()
    record |= {"model": model, "slot_batch": slot_batch}
    return record, _table(record)


def _measure(work, restart) -> dict:
    saves, copies = 0, []

    def save():
        nonlocal saves
        saves += 1
        copies.append(clock(restart.save, saves))

    def block(saving):
        if saving:
            save()
        for _ in range(steps):
            work.step()
        restart.writer.finish(60.0)  # should the disk still be at it, its time counts

    steps = 1
    work.step()
    save()  # the first touches fresh memory, and shows how many steps a block needs
    work.step()
    while restart.writer.busy(0.0):
        work.step()
        steps += 1
    steps += 1
    plain, extra = [], []
    copies.clear()
    for _ in range(BLOCKS):
        seconds = [clock(block, saving) for saving in (False, True, True, False)]
        plain.append((seconds[0] + seconds[3]) / (2 * steps))
        extra.append((seconds[1] + seconds[2] - seconds[0] - seconds[3]) / 2)
    step = statistics.median(plain)
    return {
        "bytes": sum(array.nbytes for array in state(work.model.parameters).values()),
        "step_seconds": step,
        "steps_beside": steps,
        "copy_seconds": statistics.median(copies),
        "extra_seconds": statistics.median(extra),
        "share_of_interval": statistics.median(extra) / (INTERVAL * step),
    }


def _table(record) -> str:
    share, extra, step = record["share_of_interval"], record["extra_seconds"], record["step_seconds"]
    return (
        f"{machine_line()}\n"
        f"{record['model']}, slot batch {record['slot_batch']}: a step takes {1e3 * step:,.0f} ms\n"
        f"a checkpoint of {record['bytes'] / 1e6:,.0f} MB: training waits {1e3 * record['copy_seconds']:,.0f} ms for "
        f"the copy, and is {1e3 * extra:,.0f} ms late in all, {share:.2%} of {INTERVAL} steps\n"
        f"(blocks of {record['steps_beside']} steps, in turn without, with, with, without; medians of {BLOCKS} turns)"
    )
