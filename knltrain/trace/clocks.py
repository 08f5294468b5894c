"""How far this rank's clock is from rank 0's: by messages to and fro, with a bound of the error.

Rank 0 sends at t0 and hears at t1 (its clock) what the other's clock showed in between, c. So the other's clock is
ahead by c - (t0 + t1)/2, give or take (t1 - t0)/2, whatever the network does (Cristian 1989). Of some rounds the
quickest counts.
"""

import time

import numpy as np

ROUNDS = 16


def clock_offset(comm) -> dict:
    """Seconds by which time.perf_counter() here is ahead of rank 0's: at (here), offset_s, error_s. Collective.

    Rank 0 asks one rank after the other: about a millisecond each.
    """
    result, buffer = np.zeros(3), np.zeros(1)
    result[0] = time.perf_counter()
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.exchange(_ask(comm, rank, buffer), rank, None, rank)
    else:
        for _ in range(ROUNDS):
            comm.exchange(None, 0, buffer, 0)
            buffer[0] = time.perf_counter()
            comm.exchange(buffer, 0, None, 0)
        comm.exchange(None, 0, result, 0)
    return dict(zip(("at", "offset_s", "error_s"), result.tolist(), strict=True))


def _ask(comm, rank, buffer) -> np.ndarray:
    """The (at, offset, error) of `rank`, by the quickest of some rounds."""
    best = None
    for _ in range(ROUNDS):
        sent = time.perf_counter()
        comm.exchange(buffer, rank, None, rank)
        comm.exchange(None, rank, buffer, rank)
        heard = time.perf_counter()
        if best is None or heard - sent < 2 * best[2]:
            best = np.array([buffer[0], buffer[0] - (sent + heard) / 2, (heard - sent) / 2])
    return best
