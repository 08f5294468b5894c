"""TCP connections beside MPI, closed to strangers: from each host to rank 0, and from a host's ranks to its first one.

Rank 0 listens for some seconds at start: on the loopback where all ranks are on this host, else on every address of its
interfaces, and the others try one after the other, first that which leads to another host; the first rank of each other
host then listens on the loopback for the ranks beside it: 2,048 ranks on 256 hosts are 262 connections of rank 0, not
2,047. Who does not say within a
second the word that MPI has told the ranks is dropped, and the silent never keep others waiting: whoever comes is let
in at once, and while too many are silent the one that came first has to go.
"""

import contextlib
import fcntl
import hmac
import resource
import secrets
import selectors
import socket
import struct
import time

_LIMIT_S = 10.0  # until a rank that did not come is given up
_SILENT_S = 1.0  # until a stranger is dropped
_SILENT = 256  # connections without the word, at once
_BACKLOG = 4096  # Linux keeps no more; they are emptied at once
_ASKED = 4  # hosts whose names are looked up
_GREETING = 64  # bytes, at most
_LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_OTHER_FILES = 512  # that a process may have open besides: shards, libraries, what MPI needs


def connect_ranks(comm) -> tuple[dict[int, socket.socket], list[int], dict[int, str]]:
    """{rank: connection} of this rank; of all ranks to whom each speaks; and {rank: why it has no way}. Collective."""
    hosts, listeners, told = comm.gather(socket.gethostname()), [], None
    first = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    speaks_to = [0 if first[host] == rank else first[host] for rank, host in enumerate(hosts)]
    expected = {rank for rank in range(1, comm.size) if speaks_to[rank] == comm.rank}
    if expected:
        _allow_files(len(expected) + _OTHER_FILES)
        told = ["no address"]
        for address in _addresses(hosts) if comm.rank == 0 else [{"address": (_LOOPBACK, 0)}]:
            try:
                listeners.append(socket.create_server(**address, backlog=_BACKLOG))
            except OSError as error:
                told = [str(error)]
        if listeners:
            told = [*(listener.getsockname()[:2] for listener in listeners), secrets.token_hex(16)]
    told, links, why = comm.gather(told), {}, ""
    if comm.rank:
        above = speaks_to[comm.rank]
        *addresses, word = told[above]
        links, why = {}, word
        if addresses:  # a rank beside this host's first one waits until that has called rank 0
            limit = _LIMIT_S * (2 if above else 1)
            links, why = _call(list(map(tuple, addresses)), f"{word} {comm.rank}\n".encode(), above, limit)
    if listeners:
        links |= _Door(listeners, expected, told[comm.rank][-1]).links
    return links, speaks_to, {rank: reason for rank, reason in enumerate(comm.gather(why)) if reason}


def _allow_files(wanted: int):
    """Raise this process's limit of open files, often 1,024, so far, or as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _addresses(hosts) -> list[dict]:
    """Where rank 0 listens, as arguments of create_server: first on the interface that leads to another host.

    The loopback alone where all ranks are on this host, else last: hosts that are emulated on one machine find each
    other there.
    """
    others = [host for host in dict.fromkeys(hosts) if host != hosts[0]]
    found = []
    for host in others[:_ASKED]:
        with contextlib.suppress(OSError):
            family, kind, *_, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(place)  # sends nothing: a datagram's socket only looks up the way
                found.append({"address": (probe.getsockname()[0], 0), "family": family})
                break
    found += [{"address": (address, 0)} for address in (_interfaces() if others else []) if address != _LOOPBACK]
    found.append({"address": (_LOOPBACK, 0)})
    unique = {}
    for one in found:
        unique.setdefault(one["address"], one)
    return list(unique.values())


def _interfaces() -> list[str]:
    """IPv4 addresses of this host's interfaces."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _call(addresses, greeting: bytes, to: int = 0, limit_s: float | None = None) -> tuple[dict, str]:
    """({to: connection}, "") when rank `to` has answered our greeting with itself, else ({}, why)."""
    why, limit, tried = "", time.monotonic() + (limit_s or _LIMIT_S), 0
    while (left := limit - time.monotonic()) > 0:
        link, address = None, addresses[tried % len(addresses)]
        tried += 1
        try:
            link = socket.create_connection(address, timeout=min(left, 2 * _SILENT_S))
            link.sendall(greeting)
            if link.recv(_GREETING) == greeting:
                link.setblocking(False)
                return {to: link}, ""
            reason = "the connection was closed"
        except OSError as error:
            reason = str(error)
        why = why or f"{reason} at {address[0]}:{address[1]}, where rank {to} listens"
        if link:
            link.close()
        time.sleep(0.1)
    return {}, why


class _Door:
    """Lets in whoever knows the word; `links`: rank → connection, when all are there or the time is over."""

    def __init__(self, listeners, expected: set[int], word: str):
        self.links, self._expected, self._word = {}, expected, word.encode()
        self._silent = {}  # connection → (what it has said, until when it may speak), oldest first
        limit = time.monotonic() + _LIMIT_S
        with contextlib.ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            for listener in listeners:
                stack.enter_context(listener).setblocking(False)
                self._selector.register(listener, selectors.EVENT_READ)
            while len(self.links) < len(expected) and time.monotonic() < limit:
                for key, _ in self._selector.select(_SILENT_S / 10):
                    if key.fileobj in listeners:
                        self._let_in(key.fileobj)
                    elif key.fileobj in self._silent:
                        self._hear(key.fileobj)
                now = time.monotonic()
                for link in [link for link, (_, until) in self._silent.items() if until < now]:
                    self._drop(link)
            for link in list(self._silent):
                self._drop(link)

    def _let_in(self, listener):
        try:
            link, _ = listener.accept()
        except OSError:  # it has gone again, or there is no file left for it
            link = None
        if link:
            link.setblocking(False)
            self._silent[link] = (b"", time.monotonic() + _SILENT_S)
            self._selector.register(link, selectors.EVENT_READ)
        if self._silent and (link is None or len(self._silent) > _SILENT):
            self._drop(next(iter(self._silent)))

    def _hear(self, link):
        said, until = self._silent[link]
        try:
            more = link.recv(_GREETING)
            said += more
            word, _, rank = said.partition(b" ")
            if more and not said.endswith(b"\n") and len(said) < _GREETING:
                self._silent[link] = (said, until)  # the rest is on its way
            elif hmac.compare_digest(word, self._word) and int(rank) in self._expected:
                link.sendall(said)
                self._drop(link, close=False)
                if int(rank) in self.links:  # it was not answered in time, and came again
                    self.links[int(rank)].close()
                self.links[int(rank)] = link
            else:
                self._drop(link)
        except (OSError, ValueError):
            self._drop(link)

    def _drop(self, link, close=True):
        self._selector.unregister(link)
        del self._silent[link]
        if close:
            link.close()
