"""A watch over all ranks: who is gone, who is late, and an end to a job that hangs.

MPI says nothing when a rank dies or stops; the others wait in their next exchange, under some launchers for ever. So
every rank keeps a TCP connection to rank 0, beside MPI, and a thread that tells once a second how many exchanges the
rank has entered and in which one it is. Rank 0 compares:

- a connection that closes without a goodbye: that rank's process has ended;
- a rank that others are waiting for, or all ranks in one exchange without end, or a rank that sends nothing: after
  `warn_s` a line names the ranks and the bucket, after `end_s` the job is ended.

If rank 0 itself is gone or silent, the others say so and end. Nothing here sits in the way of a step.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass

from ..text import printable
from .rendezvous import connect_ranks

EXIT_CODE = 70  # of a job that the watch has ended: internal error, in the words of sysexits.h
_PERIOD_S = 1.0


@dataclass
class State:
    """What is known of a rank."""

    place: str  # host and process
    count: int = 0  # exchanges entered
    what: str = ""  # the exchange it is in; "" between two
    heard: float = 0.0
    connected: bool = True


class Watch:
    """The watch of this rank. `enter` and `leave` frame every exchange; `close` says goodbye. Collective at start.

    With one rank there is nothing to watch. last_words: what else to say where the job is ended.
    """

    def __init__(self, comm, warn_s: float = 60.0, end_s: float = 600.0, last_words=lambda: ""):
        self.comm, self.warn_s, self.end_s, self.last_words = comm, warn_s, end_s, last_words
        self.period = min(_PERIOD_S, warn_s / 4)
        self.note = ""
        self._mine = State(f"{socket.gethostname()} process {os.getpid()}")
        self._closing = threading.Event()
        self._thread = None
        self.places = [self._mine.place]  # of all ranks
        if comm.size == 1:
            return
        self.places = comm.gather(self._mine.place)
        self._sockets, lost = connect_ranks(comm)
        now = time.monotonic()
        self._states = [State(place, heard=now, connected=rank not in lost) for rank, place in enumerate(self.places)]
        if lost:
            why = next(iter(lost.values()))
            self.note = f"note: no watch over {self._names(list(lost))}: no connection to rank 0 ({why})"
        self._selector = selectors.DefaultSelector()
        for rank, link in self._sockets.items():
            self._selector.register(link, selectors.EVENT_READ, rank)
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
        self._thread.start()

    def enter(self, what: str):
        """This rank begins an exchange that all ranks take part in, in the same order."""
        self._mine.count += 1
        self._mine.what = what

    def leave(self):
        """It is over."""
        self._mine.what = ""

    def close(self):
        """Stop watching, and let the others know that this is no accident; harmless when repeated."""
        if self._thread:
            self._closing.set()
            self._thread.join(5 * self.period)
            self._thread = None

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _loop(self):
        self._received = {rank: b"" for rank in self._sockets}
        self._since, self._seen, self._warned = time.monotonic(), None, False
        following = 0.0
        while not self._closing.is_set():
            for key, _ in self._selector.select(self.period / 4):
                self._read(key.data)
            now = time.monotonic()
            if now >= following:
                following = now + self.period
                self._send([self._mine.count, self._mine.what])
                self._judge(now)
        self._send("bye")
        for link in self._sockets.values():
            link.close()

    def _send(self, message):
        line = json.dumps(message).encode() + b"\n"
        for link in list(self._sockets.values()):
            try:
                link.send(line)
            except OSError:
                pass  # its end is noticed by reading

    def _read(self, rank):
        try:
            data = self._sockets[rank].recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(rank)
            self._end(f"rank {rank} ({self._states[rank].place}) is gone: its process has ended")
            return
        *lines, self._received[rank] = (self._received[rank] + data).split(b"\n")
        state = self._states[rank]
        state.heard = time.monotonic()
        for line in lines:
            message = json.loads(line)
            if message == "bye":
                self._drop(rank)
                return
            state.count, state.what = message

    def _drop(self, rank):
        self._selector.unregister(self._sockets[rank])
        self._sockets.pop(rank).close()
        self._states[rank].connected = False

    def _judge(self, now):
        """Has anything moved? If not for too long, say who is waited for."""
        mine = self._states[self.comm.rank]
        mine.count, mine.what, mine.heard = self._mine.count, self._mine.what, now
        watched = {0: self._states[0], self.comm.rank: mine} if self.comm.rank else dict(enumerate(self._states))
        watched = {rank: state for rank, state in watched.items() if state.connected}
        silent = [rank for rank, state in watched.items() if now - state.heard > max(3 * self.period, self.warn_s / 2)]
        moved = [(state.count, state.what) for state in watched.values()]
        waiting = silent or (self.comm.rank == 0 and any(state.what for state in watched.values()))
        if moved != self._seen or not waiting:
            self._seen, self._since, self._warned = moved, now, False
            return
        stalled = now - self._since
        if stalled > self.end_s:
            self._end(f"no progress for {stalled:.0f} s: {self._diagnosis(watched, silent)}")
        elif stalled > self.warn_s and not self._warned:
            self._warned = True
            self._say(f"no progress for {stalled:.0f} s: {self._diagnosis(watched, silent)}; the job ends after "
                      f"{self.end_s:.0f} s")  # fmt: skip

    def _diagnosis(self, watched, silent) -> str:
        ahead = max(state.count for state in watched.values())
        late = [rank for rank, state in watched.items() if state.count < ahead]
        what = next((state.what for state in watched.values() if state.count == ahead and state.what), "nothing")
        words = []
        if late and self.comm.rank == 0:
            words.append(f"{what} waits for {self._names(late)}")
        elif self.comm.rank == 0 and what != "nothing":
            words.append(f"all ranks are in {what}, which does not end")
        if silent:
            words.append(f"nothing is heard from {self._names(silent)}, stopped or out of reach")
        return "; ".join(words)

    def _names(self, ranks) -> str:
        shown = ", ".join(f"rank {rank} ({self._states[rank].place})" for rank in ranks[:8])
        return shown + f" and {len(ranks) - 8} more" * (len(ranks) > 8)

    def _say(self, text):
        sys.stderr.write(f"knltrain: {printable(text)}\n")
        sys.stderr.flush()

    def _end(self, text):
        """Say it and end all ranks; the first of those who notice speaks, and the launcher ends the rest."""
        if self._closing.wait(0 if self.comm.rank <= 1 else 1.0 + 0.01 * self.comm.rank):
            return
        self._say(f"error: {text}: ending all ranks")
        if more := self.last_words():
            self._say(more)
        time.sleep(0.2)  # the launcher forwards what was printed before it kills
        self.comm.abort(EXIT_CODE)
