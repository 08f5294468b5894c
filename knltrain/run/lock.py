"""One owner of a run folder at a time: a file made exclusively, which says who, and whose time moves while he lives.

Needs no flock, which many parallel file systems do not have. The owner touches the file every BEAT_S seconds. He is
dead where his process is gone (on this host), where SLURM has begun his job anew, or where the file has not been
touched for STALE_S by the file system's own clock; whoever comes earlier waits until he knows. A dead owner's place is
taken, with a note.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

LOCK = "lock"
BEAT_S, STALE_S, LOOK_S = 10.0, 60.0, 1.0
EXIT_CODE = 73  # of a run that found an owner: "can't create", in the words of sysexits.h


class OwnedError(ValueError):
    """Another run owns the folder; one line: who, and what to do."""

    exit_code = EXIT_CODE


class Lock:
    """The lock of `folder`, for this process. warn: told of an owner that died, and of a folder that is gone."""

    def __init__(self, folder: Path, warn):
        self.path, self.warn = Path(folder) / LOCK, warn
        self.own = {"host": socket.gethostname(), "process": os.getpid(), "begun": _begun(os.getpid())}
        self.own |= {"processes": _namespace(), "job": os.environ.get("SLURM_JOB_ID", "")}
        self.own["restart"] = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self._done = threading.Event()
        self._thread = None

    def acquire(self):
        """Raises OwnedError where somebody alive owns the folder, OSError where the lock cannot be written."""
        for _ in range(3):  # a second try after a dead owner; a third where another was faster
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._take_over()
                continue
            try:
                with open(descriptor, "w") as file:
                    json.dump(self.own, file)
            except OSError as error:  # a full disk
                self.path.unlink(missing_ok=True)
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
            self._thread.start()
            return
        raise OwnedError(f"{self.path}: others take this run folder at the same time: choose another --run")

    def release(self):
        """Give the folder back; harmless when repeated, and where the folder is gone."""
        if self._thread:
            self._done.set()
            self._thread.join(1)
            self._thread = None
            if self.read() == self.own:
                self.path.unlink(missing_ok=True)

    def _take_over(self):
        owner = self.read()
        who = f"process {owner.get('process')} on {owner.get('host')}" if owner else "somebody"
        if not self._is_dead(owner, who):
            job = f", job {owner['job']}" if owner and owner.get("job") else ""
            raise OwnedError(
                f"{self.path.parent} belongs to a run that is alive ({who}{job}): "
                "stop that one, or choose another --run folder"
            )
        aside = self.path.with_name(f"{LOCK}.{self.own['host']}.{self.own['process']}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            found = self.read(aside)
            if found != owner:  # somebody else was faster, and this is his: give it back
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
            elif owner:
                self.warn(f"note: the last run in {self.path.parent} ({who}) ended without giving it back; "
                          "going on in its place")  # fmt: skip
            aside.unlink()

    def _is_dead(self, owner, who) -> bool:
        owner = owner or {}
        if owner.get("job") and owner["job"] == self.own["job"] and owner.get("restart") != self.own["restart"]:
            return True
        if self.is_of_here(owner):
            return _begun(owner.get("process")) != owner.get("begun")
        return self._falls_silent(who)  # on another host; or being written just now, or damaged

    def is_of_here(self, owner: dict) -> bool:
        """Whether the owner's process can be looked at."""
        return bool(owner) and all(owner.get(key) == self.own[key] for key in ("host", "processes"))

    def _falls_silent(self, who) -> bool:
        """Wait until nobody has touched the file for STALE_S; False as soon as somebody does."""
        first = None
        while True:
            touched, now = self._times()
            if now - touched > STALE_S:
                return True
            if first is None:
                first = touched
                self.warn(f"note: {self.path.parent} was in use {now - touched:.0f} s ago ({who}): "
                          f"waiting up to {STALE_S - (now - touched):.0f} s to see whether that run lives")  # fmt: skip
            elif touched != first:
                return False
            time.sleep(LOOK_S)

    def read(self, path=None):
        """Who owns the folder, None where that cannot be read."""
        try:
            owner = json.loads((path or self.path).read_text())
            return owner if isinstance(owner, dict) else None
        except (OSError, ValueError):
            return None

    def _times(self) -> tuple[float, float]:
        """When the file was last touched, and now, both by the clock of the file system."""
        probe = self.path.with_name(f".{LOCK}.{self.own['host']}.{self.own['process']}")
        try:
            probe.touch()
            with open(self.path) as file:  # NFS asks its server where a file is opened, else it may remember
                return os.fstat(file.fileno()).st_mtime, probe.stat().st_mtime
        except FileNotFoundError:
            return 0.0, STALE_S + 1
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self):
        while not self._done.wait(BEAT_S):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                self.warn(f"warning: {self.path.parent} is gone: what this run saves is lost until it is back")
                return
            except OSError:
                continue  # a disk that refuses is said by those who write


def is_held(folder: Path) -> bool:
    """Whether a run owns `folder`, as far as one look tells."""
    lock = Lock(folder, lambda line: None)
    try:
        silent = time.time() - lock.path.stat().st_mtime
    except OSError:
        return False
    owner = lock.read() or {}
    return _begun(owner.get("process")) == owner.get("begun") if lock.is_of_here(owner) else silent < 2 * STALE_S


def _begun(process) -> int | None:
    """When a process of this host began, in ticks since the boot; None where there is none of that number."""
    try:
        with open(f"/proc/{int(process)}/stat") as file:
            state, *rest = file.read().rpartition(")")[2].split()
            return None if state == "Z" else int(rest[18])  # a zombie is as good as gone
    except (OSError, ValueError, TypeError, IndexError):
        return None


def _namespace() -> str:
    """Equal for processes whose numbers mean the same."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{os.readlink('/proc/self/ns/pid')} {boot.read().strip()}"
    except OSError:
        return ""
