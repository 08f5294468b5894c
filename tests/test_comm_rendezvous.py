"""knltrain/comm/rendezvous.py: ranks find rank 0 whatever strangers do, and say why where they do not."""

import resource
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ranks import on_ranks

from knltrain.comm import Watch, rendezvous

WORD = b"0123456789abcdef"
PATIENCE = 20.0  # seconds; far above what is promised, on a machine that is shared


@pytest.fixture
def strangers(monkeypatch):
    """Connections that are there before any rank is: `strangers(count, words)` tells how many, and what they say."""
    create, crowd, plan = socket.create_server, [], []

    def create_server(*arguments, **options):
        listener = create(*arguments, **options)
        for number in range(plan[0]):
            link = socket.create_connection(listener.getsockname()[:2], timeout=PATIENCE)
            link.sendall(plan[1][number % len(plan[1])])
            crowd.append(link)
        return listener

    monkeypatch.setattr(rendezvous.socket, "create_server", create_server)
    yield lambda count, words: plan.extend([count, words])
    for link in crowd:
        link.close()


@pytest.mark.parametrize("words", [[b""], [b"x" * 33 + b" 1\n", b"\xff" * 100, b" \n", b""]], ids=["silent", "loud"])
def test_connect__is_not_kept_from_it_by_strangers(strangers, words):
    strangers(400, words)
    begin = time.monotonic()
    found = on_ranks(3, rendezvous.connect_ranks)
    assert [set(links) for links, *_ in found] == [{1, 2}, {0}, {0}] and time.monotonic() - begin < PATIENCE
    for rank in (1, 2):
        found[rank][0][0].sendall(b"%d" % rank)
        there = found[0][0][rank]
        there.settimeout(PATIENCE)
        assert there.recv(10) == b"%d" % rank
    assert {there.getsockname()[0] for there in found[0][0].values()} == {"127.0.0.1"}  # all ranks are on this host
    for links, speaks_to, why in found:
        assert why == {} and speaks_to == [0, 0, 0]
        for link in links.values():
            link.close()


@pytest.fixture
def door():
    """The address of a door that waits for rank 1 of two, who must have come when the test ends."""
    listener, doors = socket.create_server(("127.0.0.1", 0)), []
    address = listener.getsockname()
    thread = threading.Thread(target=lambda: doors.append(rendezvous._Door([listener], {1}, WORD.decode())))
    thread.start()
    yield address
    thread.join(PATIENCE)
    assert set(doors[0].links) == {1}
    doors[0].links[1].close()


@pytest.mark.parametrize("said", [b"", b"0123", WORD[:-1] + b"0 1\n", WORD + b" 0\n", WORD + b" 2\n", WORD + b" one\n"])
def test_door__drops_who_does_not_know_the_word(door, said):
    with socket.create_connection(door, timeout=PATIENCE) as stranger:
        stranger.sendall(said)
        assert stranger.recv(100) == b""
    links, why = rendezvous._call([door], WORD + b" 1\n")
    assert set(links) == {0} and why == ""
    links[0].close()


def test_door__waits_for_the_rest_of_a_greeting(door):
    with socket.create_connection(door, timeout=PATIENCE) as rank:
        rank.sendall(WORD[:5])
        time.sleep(0.05)
        rank.sendall(WORD[5:] + b" 1\n")
        assert rank.recv(100) == WORD + b" 1\n"


def test_addresses__are_all_of_this_host_first_the_one_that_leads_to_another(monkeypatch):
    names = {"there": (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.9", 9))}
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", lambda host, *_, **__: [names.get(host) or _unknown(host)])
    monkeypatch.setattr(rendezvous, "_interfaces", lambda: ["127.0.0.1", "10.0.0.7", "192.168.3.7"])
    found = {hosts[1]: [one["address"][0] for one in rendezvous._addresses(hosts)] for hosts in (
        ["here", "here"], ["here", "nowhere"], ["here", "there"])}  # fmt: skip
    assert found["here"] == ["127.0.0.1"]
    assert found["nowhere"] == ["10.0.0.7", "192.168.3.7", "127.0.0.1"]
    assert found["there"] == ["127.0.0.1", "10.0.0.7", "192.168.3.7"]


def test_call__tries_one_address_after_the_other(door):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()
    links, why = rendezvous._call([closed, door], WORD + b" 1\n")
    assert set(links) == {0} and why == ""
    links[0].close()


def test_limit_of_open_files__is_raised_as_far_as_ranks_need_and_never_lowered():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        rendezvous._allow_files(700)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (700, before[1])
        rendezvous._allow_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (700, before[1])
        rendezvous._allow_files(2**40)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (before[1], 2**40)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _unknown(host):
    raise socket.gaierror(-2, f"{host} is not known")


@pytest.mark.parametrize("broken", ["create_server", "create_connection"])
def test_watch__says_why_it_cannot_start(monkeypatch, broken):
    def fail(*arguments, **options):
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(rendezvous.socket, broken, fail)
    monkeypatch.setattr(rendezvous, "_LIMIT_S", 0.5)
    for watch in on_ranks(2, Watch):
        watch.close()
        assert "note: no watch over rank " in watch.note and "Cannot assign requested address" in watch.note


# ---- through the first rank of each host ------------------------------------------------------------------------


def _soon(true):
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
def watches(monkeypatch):
    """Of six ranks on two hosts, and the codes with which a rank has ended all."""
    here, ended = threading.local(), []
    for module in ("watch", "rendezvous"):
        names = vars(socket) | {"gethostname": lambda: here.host}
        monkeypatch.setattr(f"knltrain.comm.{module}.socket", SimpleNamespace(**names))

    def watch(comm):
        here.host = f"host{comm.rank // 3}"
        return Watch(SimpleNamespace(rank=comm.rank, size=6, gather=comm.gather, abort=ended.append), 2.0)

    found = on_ranks(6, watch)
    yield found, ended
    for watch in found:
        watch.close()


def test_watch__forgives_all_a_sleep_of_the_whole_job(watches, monkeypatch):
    """As `scontrol suspend` makes it: everybody finds a minute gone, of five seconds allowed. A hang ends."""
    found, ended = watches
    real, gone = time.monotonic, [0.0]
    clock = SimpleNamespace(monotonic=lambda: real() + gone[0], sleep=time.sleep)
    monkeypatch.setattr("knltrain.comm.watch.time", clock)
    for watch in found:
        watch.end_s = watch.warn_s = 5.0
        watch.enter("bucket 3")
    for _ in range(3):
        gone[0] += 60.0
        time.sleep(0.4)
    assert not ended

    def end():
        gone[0] += 0.2
        return ended

    _soon(end)


def test_watch__holds_a_connection_a_host_and_hears_of_all(watches):
    found, ended = watches
    assert [set(watch._sockets) for watch in found] == [{1, 2, 3}, {0}, {0}, {0, 4, 5}, {3}, {3}]
    for rank, watch in enumerate(found):
        assert watch.note == ""
        watch.enter(f"bucket {rank}")
    _soon(lambda: [state.what for state in found[0]._states] == [f"bucket {rank}" for rank in range(6)])
    found[5].close()
    _soon(lambda: not found[0]._states[5].connected)  # its goodbye was passed on
    found[3].close()
    _soon(lambda: [state.connected for state in found[0]._states] == [True] * 3 + [False] * 3)
    assert not ended


def test_watch__names_a_rank_that_another_speaks_for(watches, capsys):
    found, ended = watches
    for watch in found:
        watch.enter("bucket 0")
    _soon(lambda: all(state.count == 1 for state in found[0]._states))
    for watch in found[:5]:
        watch.leave()
        watch.enter("bucket 1")
    _soon(lambda: "bucket 1 waits for rank 5 (host1" in capsys.readouterr().err)
    found[4]._sockets[3].shutdown(socket.SHUT_RDWR)  # as where its process ends
    _soon(lambda: 70 in ended)
    assert "rank 4 (host1" in capsys.readouterr().err


@pytest.mark.parametrize("leaving", [0, 1])
def test_watch__its_goodbye_is_heard_whatever_it_has_not_read(leaving, monkeypatch):
    """A connection that is closed with something unread is cut, and a goodbye that waits behind a line that was not yet
    acknowledged is lost with it: the training had gone to its end, and was ended as one that lost a rank."""
    here, there = _both_ends()
    monkeypatch.setattr("knltrain.comm.watch.connect_ranks", lambda comm: ({1 - leaving: here}, [0, 0], {}))
    watch = Watch(SimpleNamespace(rank=leaving, size=2, gather=lambda place: [place, place]))
    parting = threading.Thread(target=watch.close)
    parting.start()
    heard = b""
    while not heard.endswith(b'"bye"\n'):
        heard += there.recv(65536)
    there.sendall(b"[[0, 1, 2]]\n")  # before it has read the goodbye
    parting.join(0.2)
    assert parting.is_alive()
    assert there.recv(1) == b""  # a proper end; a connection that was cut raises ConnectionResetError
    there.close()
    parting.join(PATIENCE)
    assert not parting.is_alive()


def test_watch__does_not_wait_for_ever_to_be_heard(monkeypatch):
    here, there = _both_ends()
    monkeypatch.setattr("knltrain.comm.watch.connect_ranks", lambda comm: ({0: here}, [0, 0], {}))
    watch = Watch(SimpleNamespace(rank=1, size=2, gather=lambda place: [place, place]))
    parting = threading.Thread(target=watch.close)
    parting.start()
    parting.join(PATIENCE)
    assert not parting.is_alive() and here.fileno() == -1
    there.close()


def _both_ends():
    """A connection over TCP: the watch's end, and that of whom it speaks to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        here, _ = listener.accept()
    here.setblocking(False)
    return here, there


def test_rank_0__has_room_for_2048_ranks(monkeypatch):
    """The watch over 2,048 ranks on 256 hosts, and ImageNet's index, together: 300 MB at most."""
    import tracemalloc

    from knltrain.data import DataSet

    size, each, rows, calls = 2048, 8, 1_281_167, []
    hosts = [f"host{rank // each:03}" for rank in range(size)]
    places = [f"{host} process {rank}" for rank, host in enumerate(hosts)]
    word = []

    def gather(value):
        calls.append(value)
        if len(calls) == 3:  # addresses and word of rank 0
            word.append(value[-1])
            threading.Thread(target=come, args=(value[0],), daemon=True).start()
        return {1: places, 2: hosts, 3: [value] + [None] * (size - 1)}.get(len(calls), [""] * size)

    links = {}

    def come(address):
        for rank in [*range(1, each), *range(each, size, each)]:
            found, _ = rendezvous._call([address], f"{word[0]} {rank}\n".encode())
            links[rank] = found[0]

    def index(folder):
        arrays = {name: np.zeros(rows, np.int32) for name in ("labels", "checksums", "lengths")}
        few = {name: np.zeros(1024, np.int64) for name in ("first_rows", "data_at", "names_at", "name_bytes")}
        facts = {"n_rows": rows, "encoding": "jpeg", "size": 0, "fit": "crop", "data_bytes": 10**11}
        facts["class_names"] = ["c"] * 1000
        names = [f"shard-{number:05}.h5" for number in range(1024)]
        return facts | arrays | few | {"begins": np.zeros(rows, np.int64), "files": names, "digest": "", "identity": ""}

    monkeypatch.setattr(rendezvous, "_addresses", lambda hosts: [{"address": ("127.0.0.1", 0)}])
    monkeypatch.setattr(sys.modules[DataSet.__module__], "read_index", index)
    comm = SimpleNamespace(rank=0, size=size, gather=gather, broadcast=lambda array: None)
    tracemalloc.start()
    watch = Watch(comm)
    data = DataSet("unused", comm)
    try:
        assert len(watch._sockets) == size // each - 1 + each - 1 == len(links) and len(data) == rows
        for rank, link in links.items():
            mates = range(rank, rank + each) if rank >= each else [rank]
            link.setblocking(True)
            link.sendall(b"".join(b'[[%d, 7, "bucket 3"]]\n' % mate for mate in mates))
        _soon(lambda: all(state.count == 7 for state in watch._states[1:]))
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
        watch.close()
        for link in links.values():
            link.close()
