"""Ranks as threads of one process: a communicator as that of MPI, for tests of what ranks do together."""

import json
import queue
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from knltrain.models.state import state

LIMIT_S = 120  # the first rank may have to compile
ALONE = SimpleNamespace(ranks_on_node=1, on=lambda name: nullcontext())  # a placement: nothing is bound to cores


class _Everybody:
    """What the ranks of a communicator share."""

    def __init__(self, size: int):
        self.barrier, self.board = threading.Barrier(size, timeout=LIMIT_S), [None] * size
        self.messages = [[queue.SimpleQueue() for _ in range(size)] for _ in range(size)]  # [from][to]: arrays
        self.nodes, self.windows, self.lock = {}, [], threading.Lock()


class Rank:
    """The communicator of one of the threads. layout: ranks of each node, if not all on one."""

    threads_may_call = True
    library = "threads"

    def __init__(self, everybody, rank, size, layout=()):
        self._all, self.rank, self.size, self._layout = everybody, rank, size, layout
        self.sent_bytes = self.messages = self._windows = self._nodes = 0

    def exchange(self, out, to, into, source):
        self.trade([] if out is None else [(out, to)], [] if into is None else [(into, source)])

    def trade(self, sends, receives):
        for out, to in sends:
            self._all.messages[self.rank][to].put(out.copy())
            self.sent_bytes += out.nbytes
        self.messages += len(sends)
        for into, source in receives:
            np.copyto(into, self._receive(source), casting="no")

    def _receive(self, source):
        for _ in range(LIMIT_S):
            try:
                return self._all.messages[source][self.rank].get(timeout=1)
            except queue.Empty:
                if self._all.barrier.broken:
                    break
        raise TimeoutError(f"rank {self.rank} waits for a message of rank {source}")

    def gather(self, value):
        self._all.board[self.rank] = json.dumps(value)
        self._all.barrier.wait()
        everything = [json.loads(text) for text in self._all.board]
        self._all.barrier.wait()
        return everything

    def broadcast(self, array):
        if self.rank == 0:
            self._all.sent = array
        self._all.barrier.wait()
        if self.rank:
            array[...] = self._all.sent
        self._all.barrier.wait()

    def barrier(self):
        self._all.barrier.wait()

    def sum(self, array, blocking=True):
        array[...] = sum(np.array(one, array.dtype).reshape(array.shape) for one in self.gather(array.tolist()))

    def node(self, pretended=0):
        count = min(pretended, self.size) or 1
        nodes = [rank * count // self.size for rank in range(self.size)]
        layout = self._layout or [nodes.count(node) for node in range(count)]
        number, local = 0, self.rank
        while local >= layout[number]:
            number, local = number + 1, local - layout[number]
        self._nodes += 1
        with self._all.lock:
            everybody = self._all.nodes.setdefault((self._nodes, number), _Everybody(layout[number]))
        return Rank(everybody, local, layout[number])

    def window(self, nbytes):
        with self._all.lock:
            if self._windows == len(self._all.windows):
                self._all.windows.append(np.zeros((self.size, nbytes), np.uint8))
        self._windows += 1
        return self._all.windows[self._windows - 1]


def on_ranks(size: int, work, layout=(), catch=()) -> list:
    """[work(communicator)] of all ranks. Raises the first error of a rank; one of those to `catch` is its result."""
    everybody, results, errors = _Everybody(size), [None] * size, []

    def run(rank):
        try:
            results[rank] = work(Rank(everybody, rank, size, layout))
        except catch as error:
            results[rank] = error
        except BaseException as error:
            errors.append(error)
            everybody.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_S)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


def learned(trainer, steps: int, speeds=()) -> dict:
    """What is learned in some steps, and the losses; speeds: what the ranks share the slots by after the first."""
    trainer.seek(0)
    losses = [trainer.step().loss]
    if speeds:
        trainer.share(speeds)
    losses += [trainer.step().loss for _ in range(steps - 1)]
    trainer.parts.update.complete()
    return {name: array.copy() for name, array in state(trainer.model.parameters).items()} | {"loss": losses}
