"""`knltrain drill`: break small trainings in every way `--inject` knows, on this site's own MPI, and look what happens.

Each drill trains a narrow ResNet on random pictures, suffers one fault on a random rank before a random step, then is
resumed without it, on fewer ranks. It passes if nothing hangs, if what happened is what is expected, and if
the weights at the end equal those of the run that nothing disturbed, to the bit.
"""

import os
import random
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.shards import Row, finish_shard, write_shard
from ..run.checkpoint import FOLDER, CheckpointError, checkpoints, load
from ..run.lifecycle import STATUS

STEPS, SLOTS = 12, 16
COMPILE_LIMIT_S = 1800  # of the first run, which may have to compile
RECIPE = f"""
[model]
name = "resnet_cifar8"
width = 8
[data]
train = "shards"
augmentation = "crop_flip"
crop = 16
[batch]
global_batch = {2 * SLOTS}
slot_batch = 2
[optim]
variant = "mlperf"
[schedule]
base_lr = 0.1
[comm]
check_every_steps = 1
stall_warn_s = 5.0
stall_end_s = 10.0
[run]
epochs = 4.0
seed = 7
evaluate_every_epochs = 0
checkpoint_every_steps = 2
"""


@dataclass(frozen=True)
class Expected:
    """What a fault must lead to: an exit code (None: any but 0), the first word of the status, a word of the output."""

    code: int | None
    status: tuple
    says: str = ""
    more: str = ""  # further faults that belong to it


EXPECTED = {
    "kill": Expected(None, ("running",)),
    "raise": Expected(None, ("running", "died"), "injected on rank"),
    "signal": Expected(143, ("stopped",), "stopped as asked"),
    "stop": Expected(0, ("stopped",), "stopped as asked", "slow:ms=300@step={step}"),
    "slow": Expected(0, ("done",)),
    "nan": Expected(2, ("failed",), "is not finite in step"),
    "corrupt-shard": Expected(2, ("failed",), "checksum"),
    "truncate-checkpoint": Expected(None, ("running",), "", "kill:rank={rank}@step={after}"),
    "disk-full": Expected(0, ("done",), "training goes on", "slow:ms=100"),
    "flip": Expected(2, ("failed",), "the replicas differ"),
    "freeze": Expected(None, ("running",), "ending all ranks"),
}
TOGETHER = ("flip", "freeze")  # noticed by other ranks only


class Drill:
    """The folder `out` with the data, the undisturbed run, and a run folder for each drill."""

    def __init__(self, out: Path, ranks: int, launcher: str, limit_s: float):
        self.out, self.ranks, self.launcher, self.limit_s = Path(out), ranks, launcher, limit_s
        self.out.mkdir(parents=True, exist_ok=True)
        self._write_data()

    def _write_data(self):
        rng = np.random.default_rng(3)
        count = 3 * 2 * SLOTS + 4
        rows = [Row(rng.integers(0, 256, (20, 20, 3), np.uint8), i % 3, f"{i % 3}/{i:03}.png") for i in range(count)]
        (self.out / "shards").mkdir(exist_ok=True)
        temporary = self.out / "shards" / "part.tmp"
        write_shard(temporary, rows, encoding="raw", size=20, class_names=["0", "1", "2"])
        finish_shard(temporary, self.out / "shards" / "shard-00000.h5", count, 0)
        (self.out / "drill.toml").write_text(RECIPE, encoding="utf-8")

    def train(self, run: str, ranks: int, faults=(), limit_s=0.0) -> tuple[int | None, str, float]:
        """Train in the run folder `run`; returns the exit code (None: hung, and was killed), the output, seconds."""
        command = [*shlex.split(self.launcher.format(ranks=ranks)), sys.executable, "-m", "knltrain", "train"]
        command += [str(self.out / "drill.toml"), "--run", str(self.out / run), "--resume", "auto"]
        for fault in faults:
            command += ["--inject", fault]
        begin = time.monotonic()
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(self.out / f"{run}.out", "ab+") as text:
            process = subprocess.Popen(command, stdout=text, stderr=text, env=env, start_new_session=True)
            start = text.tell()
            try:
                code = process.wait(limit_s or self.limit_s)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, 9)
                process.wait()
            text.seek(start)
            return code, text.read().decode(errors="replace"), time.monotonic() - begin

    def weights(self, run: str) -> dict | None:
        """The arrays of the run's last step, None where it is not there or damaged."""
        try:
            arrays, meta = load(checkpoints(self.out / run / FOLDER)[-1])
        except (IndexError, CheckpointError):
            return None
        return arrays if meta["step"] == STEPS else None

    def one(self, number: int, kind: str, rank: int, step: int, again: int, truth: dict) -> tuple[str, str]:
        """Drill one fault; returns what happened in words and what is wrong with it ("" if nothing)."""
        run, expected = f"{number:03}-{kind}", EXPECTED[kind]
        words = {"rank": rank, "step": step, "after": step + 1}
        faults = [f"{kind}:rank={rank}@step={step}", *([expected.more.format(**words)] if expected.more else [])]
        code, text, seconds = self.train(run, self.ranks, faults)
        try:
            status = (self.out / run / STATUS).read_text().split()[0]
        except (OSError, IndexError):
            status = "none"
        happened = f"exit {code}, {status} after {seconds:.1f} s"
        if code is None:
            return happened, f"hung for {self.limit_s} s"
        if (code == 0) != (expected.code == 0) or (code != expected.code and self._exact(expected)):
            return happened, f"exit code {code}, expected {'not 0' if expected.code is None else expected.code}"
        if status not in expected.status:
            return happened, f"status {status}, expected {expected.status[0]}"
        if expected.says not in text and self._says(kind, rank):
            return happened, f"the output does not say {expected.says!r}"
        code, text, seconds = self.train(run, again)
        happened += f"; {again} ranks went on: exit {code} after {seconds:.1f} s"
        if code != 0:
            ended = f"hung for {self.limit_s} s" if code is None else f"ended with {code}"
            return happened, f"the resumed run {ended}"
        found = self.weights(run)
        if found is None or any(not np.array_equal(found[name], truth[name]) for name in truth):
            return happened, "the weights differ from those of the undisturbed run"
        return happened, ""

    def _exact(self, expected: Expected) -> bool:
        """Launchers other than mpiexec translate exit codes (srun: the first rank's signal)."""
        return expected.code is not None and "srun" not in self.launcher

    def _says(self, kind: str, rank: int) -> bool:
        """Only rank 0 writes checkpoints and may find the disk full."""
        return kind != "disk-full" or rank == 0


def drill(out: Path, *, ranks: int, count: int, seed: int, launcher: str | None, kinds=(), limit_s: float = 60) -> int:
    """Run `count` drills (at least one of each kind) and print a table; returns 0 if all passed, else 1.

    launcher: the command before `python`, with {ranks} in it; None for this environment's mpiexec. limit_s: of a
    training, longer is a hang. Raises ValueError for more ranks than SLOTS, or an unknown kind.
    """
    if not 1 <= ranks <= SLOTS:
        raise ValueError(f"found --ranks {ranks}, expected 1 to {SLOTS}")
    known = [kind for kind in EXPECTED if ranks > 1 or kind not in TOGETHER]
    unknown = set(kinds) - set(known)
    if unknown:
        raise ValueError(f"found --kind {unknown.pop()}, expected one of {', '.join(known)} on {ranks} ranks")
    if launcher is None:
        from ..node.launcher import find_mpiexec

        launcher = f"{find_mpiexec()} -n {{ranks}}"
    choose, begin = random.Random(seed), time.monotonic()
    field = Drill(out, ranks, launcher, limit_s)
    code, text, seconds = field.train("undisturbed", ranks, limit_s=COMPILE_LIMIT_S)
    truth = field.weights("undisturbed")
    if code != 0 or truth is None:
        last = (text.strip().splitlines() or ["no output"])[-1]
        raise ChildProcessError(f"the undisturbed run failed with {code}: {last}; see {field.out}")
    print(f"{launcher}: undisturbed run {seconds:.1f} s; everything is in {field.out}", flush=True)
    names = list(kinds or known)
    bad = 0
    for number in range(max(count, len(names))):
        kind = names[number] if number < len(names) else choose.choice(names)
        # where the only checkpoint is damaged a run refuses to begin anew by itself: let there be two
        earliest = 7 if kind == "truncate-checkpoint" else 2
        rank, step = choose.randrange(ranks), choose.randrange(earliest, STEPS - 1)
        again = choose.randint(1, max(1, ranks - 1))
        if kind in ("disk-full", "stop"):
            rank = 0
        happened, wrong = field.one(number, kind, rank, step, again, truth)
        bad += bool(wrong)
        verdict = f"WRONG: {wrong}" if wrong else "as expected"
        print(f"{number + 1:4} {kind:20} rank {rank} step {step:2}  {happened}  {verdict}", flush=True)
    total, seconds = max(count, len(names)), time.monotonic() - begin
    print(f"{total} drills in {seconds:.0f} s on {ranks} ranks: {total - bad} as expected, {bad} wrong")
    return int(bad > 0)
