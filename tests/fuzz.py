"""Damaged and hostile input by the thousand: `make fuzz`; tests/test_fuzz.py runs a tenth of it.

Every file tests/fuzz_*.py exports KINDS, a dict name → Kind(count, make, warm):

    count                   how many cases a whole run has
    make(random, folder)    makes one case from a seeded NumPy generator: writes hostile files into `folder`, which is
                            new and empty, and returns Case(argv, verdict). `folder.parent` stays as long as the
                            process does: a place for what all cases are copied from
    warm(folder)            called once before the first case, without a limit of time: compile, build; may be None
    argv                    of one `knltrain` command, which runs in the same process
    verdict(code, text)     from its exit code and all that it printed: what is wrong with that, or "". Most often this
                            is `refused` (the input cannot be right), or a comparison of what was read from input that
                            the damage may have missed

Wrong for every kind, and looked for here: a traceback, exit code 1, a message of many lines, a signal, more than
LIMIT_S seconds, more than GROWTH bytes of memory. Cases run in workers, which are used again until something is wrong.

    python tests/fuzz.py [--share 0.1] [--seed 0] [--kind NAME]… [--case N] [--workers 2]

--case runs one case of one kind, whose files then stay.
"""

import argparse
import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

LIMIT_S, WARM_LIMIT_S = 10.0, 600.0
GROWTH = 1 << 30  # bytes
HERE = Path(__file__).resolve().parent


class Case(NamedTuple):
    argv: list[str]
    verdict: Callable[[int, str], str]


class Kind(NamedTuple):
    count: int
    make: Callable[..., Case]
    warm: Callable[[Path], None] | None = None


def refused(code: int, text: str) -> str:
    """The verdict on input that cannot be right."""
    return "" if code == 2 else f"accepted silently (exit code {code})"


def load_kinds(folder: Path = HERE) -> dict[str, Kind]:
    """The kinds of all fuzz_*.py in a folder of sys.path."""
    kinds = {}
    for path in sorted(folder.glob("fuzz_*.py")):
        kinds |= importlib.import_module(path.stem).KINDS
    return kinds


# ---- a worker: one line of JSON in, one line out -------------------------------------------------------------


def work():
    import numpy as np

    kinds, warm = load_kinds(Path(sys.argv[3])), set()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"place": str(place)}), file=answers, flush=True)
        for line in os.fdopen(int(sys.argv[2])):
            name, seed, number = json.loads(line)
            kind = kinds[name]
            if number < 0:
                if kind.warm and name not in warm:
                    _captured(place / "output", lambda kind=kind: kind.warm(place))
                warm.add(name)
                wrong = ""
            else:
                wrong = _run(kind, np.random.default_rng([seed, number, zlib.crc32(name.encode())]), place)
            print(json.dumps({"wrong": wrong}), file=answers, flush=True)


def _run(kind, random, place) -> str:
    folder = place / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before = _memory("VmRSS")
    case = kind.make(random, folder)
    code, text = _captured(place / "output", lambda: _command(case.argv))
    growth = _memory("VmHWM") - before
    lines = [line for line in text.splitlines() if "error: " in line]
    if "Traceback" in text or code not in (0, 2):
        return f"exit code {code}: {' | '.join(text.splitlines()[-3:])}"
    if code and len(lines) != 1 and "problem" not in text:
        return f"exit code {code} and {len(lines)} lines of error: {text[:300]!r}"
    if growth > GROWTH:
        return f"{growth / 2**30:.1f} GiB of memory"
    return case.verdict(code, text)


def _command(argv):
    from knltrain.cli import main

    try:
        return main(argv)
    except SystemExit as end:  # argparse
        return end.code


def _captured(path, action):
    """(result, text) of an action whose standard output and error, also C's, go to a file."""
    kept = os.dup(1), os.dup(2)
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            result = action()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
    return result, path.read_text(errors="replace")


def _memory(key, process="self"):
    """VmRSS (now) or VmHWM (at most so far) of a process in bytes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) << 10
    return 0


# ---- the parent: hands out cases, watches ----------------------------------------------------------------------


class Worker:
    """A process that runs cases, and is started again after a case that went wrong."""

    def __init__(self, limit_s=LIMIT_S, folder: Path = HERE):
        self.limit_s, self.folder, self.process = limit_s, folder, None

    def run(self, name: str, seed: int, number: int) -> str:
        """What is wrong in one case, or ""."""
        if self.process is None:
            self._start()
        if name not in self.warm:
            self.warm.add(name)
            wrong = self._ask([name, seed, -1], WARM_LIMIT_S)
            if wrong:
                return f"before the first case: {wrong}"
        wrong = self._ask([name, seed, number], self.limit_s)
        if wrong or _memory("VmHWM", self.process.pid) > GROWTH:  # the next growth would not be seen
            self.close()
        return wrong

    def _start(self):
        reader, writer = os.pipe()
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [HERE.parent, HERE, self.folder]))}
        command = [sys.executable, str(HERE / "fuzz.py"), "--worker", str(reader), str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, pass_fds=[reader], cwd=HERE.parent)
        os.close(reader)
        self.questions, self.warm = os.fdopen(writer, "w"), set()
        self.place = json.loads(self.process.stdout.readline())["place"]

    def _ask(self, question, limit_s) -> str:
        print(json.dumps(question), file=self.questions, flush=True)
        end, start = time.monotonic() + limit_s, _memory("VmRSS", self.process.pid)
        while not select.select([self.process.stdout], [], [], 0.1)[0]:
            if time.monotonic() > end:
                self.close()
                return f"still running after {limit_s:.0f} s"
            if _memory("VmRSS", self.process.pid) > start + 2 * GROWTH:
                self.close()
                return "more than 2 GiB of memory, ended"
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            output = Path(self.place, "output").read_text(errors="replace") if code > 0 else ""
            self.close()
            return f"died by {signal.Signals(-code).name}" if code < 0 else f"worker failed ({code}): {output[-300:]}"
        return json.loads(answer)["wrong"]

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self.questions.close()
            shutil.rmtree(self.place, ignore_errors=True)
            self.process = None


def run(kinds: dict[str, Kind], share=1.0, seed=0, workers=2, limit_s=LIMIT_S, say=lambda text: None) -> list[str]:
    """Run the first `share` of the cases of each kind; what went wrong, as lines `kind case: what`."""
    left = iter([(name, number) for name, kind in kinds.items() for number in range(round(kind.count * share))])
    lock, found = threading.Lock(), []

    def serve():
        worker = Worker(limit_s)
        try:
            while True:
                with lock:
                    case = next(left, None)
                if case is None:
                    return
                wrong = worker.run(case[0], seed, case[1])
                if wrong:
                    found.append(f"{case[0]} {case[1]}: {wrong}")
                    say(found[-1])
        finally:
            worker.close()

    threads = [threading.Thread(target=serve) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[])
    parser.add_argument("--case", type=int)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    kinds = {name: kind for name, kind in load_kinds().items() if not args.kind or name in args.kind}
    if args.case is not None:
        (name,) = kinds
        worker = Worker()
        print(worker.run(name, args.seed, args.case) or "nothing is wrong")
        if worker.process:
            print(Path(worker.place, "output").read_text(errors="replace"), f"files: {worker.place}", sep="\n")
            worker.process.kill()
        return 0
    begin = time.monotonic()
    found = run(kinds, args.share, args.seed, args.workers, say=lambda text: print(text, flush=True))
    count = sum(round(kind.count * args.share) for kind in kinds.values())
    print(f"{count} cases in {time.monotonic() - begin:.0f} s: {len(found)} went wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.modules["fuzz"] = sys.modules["__main__"]  # the fuzz_*.py import Case and Kind from here
    sys.exit(work() if sys.argv[1:2] == ["--worker"] else main())
