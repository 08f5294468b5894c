"""`knltrain bench compare`: a benchmark of this checkout beside an older revision or other options, in turn.

Machines change their speed by the minute. So both run A B A B, each in processes of its own, and what counts is the
median over neighbours. Needs git, and a checkout; what a benchmark prints with `--json` is compared, and kept.
"""

import contextlib
import datetime
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ..claims.whole import write_whole
from ..node.hardware import machine_facts
from ..node.launcher import find_mpiexec

HERE = Path(__file__).resolve().parents[2]  # the checkout
NAMES = ("layer", "pass", "kernel"), ("algorithm", "wire", "bytes")  # what tells rows apart: of kernels, of exchanges


def run(what, base="", options="", rounds=3, ranks=0, save=None, as_json=False):
    """Run `knltrain bench WHAT… --json` here, in turn with revision `base` or more `options` where they are given.

    Both: that revision with those options. Printed, and kept in `save`. ranks: under mpiexec, 0: without. ValueError
    where there is no checkout or revision, or a benchmark fails.
    """
    if not what:
        raise ValueError("bench compare: found none, expected one behind the options: step --model alexnet_bn")
    record = {
        "command": " ".join(["knltrain bench", *what]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": revision("HEAD"),
        "machine": machine_facts(),
    }
    if base or options:
        other = [*what, *shlex.split(options)]
        with checkout(base) if base else contextlib.nullcontext(HERE) as there:
            pairs = [(measure(there, other, ranks), measure(HERE, what, ranks)) for _ in range(rounds)]
        record |= {"base": " ".join(filter(None, [revision(base or "HEAD"), options]))}
        record |= {"ratios": ratios(pairs), "rows": pairs[-1][1], "base_rows": pairs[-1][0]}
    else:
        record["rows"] = measure(HERE, what, ranks)
    if save:
        write_whole(save, json.dumps(record, indent=1) + "\n")
    print(table(record) if "ratios" in record and not as_json else json.dumps(record, indent=1))


def _git(*arguments) -> str:
    found = subprocess.run(["git", "-C", HERE, *arguments], capture_output=True, text=True)
    if found.returncode:
        reason = (found.stderr.strip() or "no reason given").splitlines()[-1]
        raise ValueError(f"bench compare: git {arguments[0]} in {HERE}: {reason}; expected a checkout and its revision")
    return found.stdout.strip()


def revision(name: str) -> str:
    """The commit of a name, shortened; HEAD's with `-dirty` where files have changed since."""
    if name == "HEAD":
        return _git("describe", "--always", "--dirty", "--exclude=*")
    return _git("rev-parse", "--short", f"{name}^{{commit}}")


@contextlib.contextmanager
def checkout(base: str):
    """A folder with the files of a revision, for a while."""
    commit = revision(base)
    with tempfile.TemporaryDirectory() as folder:
        _git("worktree", "add", "--detach", f"{folder}/base", commit)
        try:
            yield Path(folder) / "base"
        finally:
            _git("worktree", "remove", "--force", f"{folder}/base")


def measure(tree: Path, what, ranks: int):
    """What one run of a benchmark, with the code of `tree`, says: parsed JSON."""
    launcher = [find_mpiexec(), "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-m", "knltrain", "bench", *what, "--json"]
    found = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if found.returncode:
        reason = (found.stderr.strip() or found.stdout.strip() or "nothing was said").splitlines()[-1]
        raise ValueError(f"bench compare: `knltrain bench {' '.join(what)} --json` of {tree} failed: {reason}")
    return json.loads(found.stdout)


def seconds(rows) -> dict:
    """Name → every time in what a benchmark says: of a row or a step, and of a step by kind."""
    if isinstance(rows, list):
        return {name: taken for row in rows for name, taken in seconds(row).items()}
    keys = next((keys for keys in NAMES if keys[0] in rows), ())
    row = [str(rows[key]) for key in keys]
    found = {(*row, key): value for key, value in rows.items() if key in ("seconds", "step_seconds")}
    return found | {("by kind", kind): taken for kind, taken in rows.get("by_kind", {}).items()}


def ratios(pairs) -> dict:
    """Name → [median of the times of base, of those here, median ratio of neighbours: above 1 is faster here]."""
    turns = [(seconds(old), seconds(new)) for old, new in pairs]
    common = [name for name in turns[0][1] if all(min(old.get(name, 0), new.get(name, 0)) > 0 for old, new in turns)]
    medians = {}
    for name in common:
        before, now = ([side[name] for side in sides] for sides in zip(*turns, strict=True))
        faster = statistics.median(a / b for a, b in zip(before, now, strict=True))
        medians[" ".join(name)] = [statistics.median(before), statistics.median(now), faster]
    return medians


def table(record: dict) -> str:
    """The record for a reader."""
    width = max(map(len, record["ratios"]), default=0)
    lines = [
        f"{record['command']}; {record['machine']['processor']}; first {record['base']}, then {record['commit']}",
        f"{'':{width}}  {'first':>12}  {'then':>12}   times as fast",
    ]
    for name, (before, now, faster) in record["ratios"].items():
        lines.append(f"{name:{width}}  {1e3 * before:9.3f} ms  {1e3 * now:9.3f} ms   {faster:.3f}")
    return "\n".join(lines)
