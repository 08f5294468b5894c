"""A watch over all ranks: who is gone, who is late, and an end to a job that hangs.

MPI says nothing when a rank dies or stops; the others wait in their next exchange, under some launchers for ever. So
every rank has a thread that tells once a second, beside MPI, how many exchanges the rank has entered and in which one
it is: to the first rank of its host, which passes it on to rank 0 (see `rendezvous`). Rank 0 compares:

- a connection that closes without a goodbye: that rank's process has ended;
- a rank that others are waiting for, or all ranks in one exchange without end, or a rank that sends nothing: after
  `warn_s` a line names the ranks and the bucket, after `end_s` the job is ended.

If rank 0 itself is gone or silent, the others say so and end. Nothing here sits in the way of a step.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass

from ..claims.text import printable
from .rendezvous import connect_ranks

EXIT_CODE = 70  # of a job that the watch has ended: internal error, in the words of sysexits.h
_PERIOD_S = 1.0
_GONE = -1  # exchanges of a rank that has said goodbye


@dataclass
class State:
    """What is known of a rank."""

    place: str  # host and process
    count: int = 0  # exchanges entered
    what: str = ""  # the exchange it is in; "" between two
    heard: float = 0.0
    connected: bool = True
    fresh: bool = False  # to be passed on


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
        self._sockets, self._speaks_to, lost = connect_ranks(comm)
        lost |= {rank: lost[above] for rank, above in enumerate(self._speaks_to) if above in lost}
        now = time.monotonic()
        self._states = [State(place, heard=now, connected=rank not in lost) for rank, place in enumerate(self.places)]
        self._above = self._speaks_to[comm.rank] if comm.rank else None
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
        following, now = 0.0, self._since
        while not self._closing.is_set():
            for key, _ in self._selector.select(self.period / 4):
                self._read(key.data)
            before, now = now, time.monotonic()
            if now - before > 3 * self.period:  # this process was stopped, perhaps with the whole job: forgive all that
                self._since += now - before
                for state in self._states:
                    state.heard += now - before
            if now >= following:
                following = now + self.period
                self._tell()
                self._judge(now)
        self._say_goodbye()

    def _say_goodbye(self):
        """And read on until the others have heard it, for a period: what a connection that is closed with something
        unread has just been given to send is lost with it."""
        limit = time.monotonic() + self.period
        for rank, link in self._sockets.items():
            self._send(rank, "bye")
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)
        for link in self._sockets.values():
            with contextlib.suppress(OSError), link:
                while (left := limit - time.monotonic()) > 0:
                    link.settimeout(left)
                    if not link.recv(65536):
                        break

    def _tell(self):
        """Say where this rank is; to whom it speaks also what was heard since from those that speak to it."""
        mine = [self.comm.rank, self._mine.count, self._mine.what]
        news = [[rank, state.count, state.what] for rank, state in enumerate(self._states) if state.fresh]
        for rank in self._sockets:
            self._send(rank, [mine, *(news if rank == self._above else [])])
        for rank, *_ in news:
            self._states[rank].fresh = False

    def _send(self, rank, message):
        with contextlib.suppress(OSError):  # its end is noticed by reading
            self._sockets[rank].send(json.dumps(message).encode() + b"\n")

    def _read(self, rank):
        try:
            data = self._sockets[rank].recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(rank)
            self._end(f"rank {rank} ({self._states[rank].place}) is gone: its process has ended", rank == self._above)
            return
        *lines, self._received[rank] = (self._received[rank] + data).split(b"\n")
        now = time.monotonic()
        for line in lines:
            message = json.loads(line)
            if message == "bye":
                self._drop(rank)
                return
            for one, count, what in message:
                state = self._states[one]
                state.count, state.what, state.heard, state.fresh = count, what, now, rank != self._above
                state.connected = count != _GONE

    def _drop(self, rank):
        """It says no more, nor do those that speak to it."""
        self._selector.unregister(self._sockets[rank])
        self._sockets.pop(rank).close()
        for one, state in enumerate(self._states):
            if one == rank or (self._speaks_to[one] == rank and self.comm.rank == 0):
                state.connected = False
        self._states[rank].count, self._states[rank].fresh = _GONE, rank != self._above

    def _judge(self, now):
        """Has anything moved? If not for too long, say who is waited for."""
        mine = self._states[self.comm.rank]
        mine.count, mine.what, mine.heard = self._mine.count, self._mine.what, now
        some = range(self.comm.size) if self.comm.rank == 0 else (self._above, self.comm.rank)
        watched = {rank: self._states[rank] for rank in some}
        watched = {rank: state for rank, state in watched.items() if state.connected}
        silent = [rank for rank, state in watched.items() if now - state.heard > max(3 * self.period, self.warn_s / 2)]
        moved = [(state.count, state.what) for state in watched.values()]
        waiting = silent or (self.comm.rank == 0 and any(state.what for state in watched.values()))
        if moved != self._seen or not waiting:
            self._seen, self._since, self._warned = moved, now, False
            return
        stalled = now - self._since
        if stalled > self.end_s:
            self._end(f"no progress for {stalled:.0f} s: {self._diagnosis(watched, silent)}", self.comm.rank > 0)
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

    def _end(self, text, many: bool):
        """Say it and end all ranks; of the many who may notice the first one speaks, and the launcher ends the rest."""
        if self._closing.wait(1.0 + 0.01 * self.comm.rank if many and self.comm.rank > 1 else 0):
            return
        self._say(f"error: {text}: ending all ranks")
        if more := self.last_words():
            self._say(more)
        time.sleep(1.0)  # the launcher forwards what was printed before it kills, if it gets to it
        self.comm.abort(EXIT_CODE)
