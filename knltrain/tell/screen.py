"""What a run shows: every record of the log that is for a reader, as text.

On a terminal a block is redrawn (see `board`), or where rich is not installed one line; elsewhere a plain line appears
now and then, and always for the first and the last step. Lines for experts (where threads run, how gradients travel,
where the start's time went) come with `verbose`. docs/log.md is the schema of the records.
"""

import math
import os
import shutil
import stat
import sys
import time
from pathlib import Path

from ..claims.text import printable
from ..node.hardware import format_list
from .board import LEAST_COLUMNS, LEAST_ROWS, Board, available, duration, rate

REDRAW_S, REDRAW_BLOCK_S = 0.1, 1.0  # a block takes a millisecond, a line next to nothing
LAUNCHERS = ("mpiexec", "mpirun", "hydra", "prte", "orte", "srun")  # in the names of processes


class Screen:
    """Draws the records it is told.

    progress: "bar" redraws one line, "lines" adds plain ones, "none" shows neither these nor epochs; "auto" redraws a
    block or "bar" where a terminal stands behind `stream` (default: stderr), also behind an MPI launcher. every:
    seconds between plain lines.
    """

    def __init__(self, progress: str = "auto", verbose: bool = False, stream=None, every: float = 5.0):
        self.stream, self.verbose, self.every = sys.stderr if stream is None else stream, verbose, every
        self.terminal = _terminal(self.stream) if progress in ("auto", "bar") else None  # a file number
        self.redrawn, self.silent = progress == "bar" or self.terminal is not None, progress == "none"
        block = progress == "auto" and self.redrawn and os.environ.get("TERM") != "dumb" and available()
        self.board, self.block = Board(), block
        self.shown = -math.inf  # when the progress was last written
        self.total = 0  # steps
        self.drawn: list[str] = []  # what stands on the terminal's last lines

    def tell(self, record: dict):
        """Show a record of the log, where its kind has words."""
        self.learn(record)
        kind = record["kind"]
        if kind == "step":
            now, every = time.perf_counter(), self._pause()
            if not self.silent and (now - self.shown >= every or record["step"] >= record["total_steps"]):
                self.show()
        elif kind in ("epoch", "evaluation"):
            if not self.silent:
                self.say(_epoch(record) if kind == "epoch" else _evaluation(record))
        elif kind in WORDS:
            if kind == "end":
                self._leave()
            for line in WORDS[kind](record, self.verbose):
                self.say(line)

    def learn(self, record: dict):
        """Remember what a record says of the run, without showing it."""
        self.board.tell(record)
        if record["kind"] == "step":
            self.total = record["total_steps"]

    def show(self):
        """Draw how far the run is."""
        self.shown = time.perf_counter()
        columns, rows = self._size()
        if self.block and columns >= LEAST_COLUMNS and rows >= LEAST_ROWS:
            self._draw(self.board.lines(columns - 1))
        elif self.board.step and self.redrawn:
            self._draw([_progress(self.board, self.total)[: columns - 1]])
        elif self.board.step:
            self.say(_progress(self.board, self.total))

    def say(self, line: str):
        """A line that stays; what is redrawn moves below it."""
        line = printable(line)
        if self.drawn:
            self._draw(self.drawn, f"{line}\x1b[K\n")
        else:
            self.stream.write(line + "\n")
            self.stream.flush()

    def close(self):
        """End what is redrawn; harmless when repeated."""
        if len(self.drawn) == 1:
            self.stream.write("\n")
        self.drawn = []
        self.stream.flush()

    def _draw(self, lines, above=""):
        """Put `lines` in the place of what is drawn, and the line `above` before them.

        The cursor is left below a block: what another thread or rank has to say last does not end up on its last line.
        """
        up = len(self.drawn) if len(self.drawn) > 1 else 0
        back = f"\r\x1b[{up}A" if up else "\r"
        end = "\x1b[K\n\x1b[J" if len(lines) > 1 else "\x1b[J" if up else "\x1b[K"
        self.stream.write(back + above + "\x1b[K\n".join(lines) + end)
        self.stream.flush()
        self.drawn = lines

    def _leave(self):
        """The run has ended: a block stays as it is, a line goes."""
        if len(self.drawn) > 1:
            self.show()
            self.close()
        elif self.drawn:
            self.stream.write("\r\x1b[K")
            self.drawn = []

    def _pause(self) -> float:
        """Seconds between two looks at the progress."""
        return self.every if not self.redrawn else REDRAW_BLOCK_S if self.block else REDRAW_S

    def _size(self) -> tuple[int, int]:
        """Columns and rows of the terminal."""
        try:
            found = os.get_terminal_size(self.terminal)
        except (OSError, TypeError, ValueError):
            found = shutil.get_terminal_size()
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() and int(columns) else found.columns or 80, found.lines or 24


# ---- words -------------------------------------------------------------------------------------------------------


def _begin(r, verbose):
    yield f"{r['model']}: {r['parameters']:,} parameters, {r['memory_bytes'] / 2**20:,.0f} MiB of memory for a step"
    yield (
        f"{r['images']:,} images in {r['classes']} classes, {r['steps_per_epoch']} steps an epoch, "
        f"{r['total_steps']} in all"
    )
    yield (
        f"global batch {r['global_batch']} = {r['slots']} slots of {r['slot_batch']}, on {r['ranks']} "
        f"rank{'s' * (r['ranks'] > 1)} of {r['threads_per_rank']} thread{'s' * (r['threads_per_rank'] > 1)} "
        f"({r['kernels']} kernels)"
    )
    if verbose:
        yield from placement_lines(r["placement"])
        yield from _exchange_lines(r["exchange"])
    if r["step"]:
        yield f"continuing after step {r['step']}"


def placement_lines(p: dict):
    """Where a rank's threads run; communication and readers without cores of their own share those of compute."""
    told = f" ({p['threads_by']})" if p["threads_by"] else ""
    own = {key: f"CPU {format_list(p[key])}" for key in ("communication", "readers") if p[key]}
    pinned = "pinned" if p["bound"] else "not pinned (KNLTRAIN_BIND=1 pins)"
    yield f"placement        ranks on node {p['ranks_on_node']}, {pinned}"
    yield (
        f"  compute        {p['threads']} threads{told} on CPU {format_list(p['compute'])}, "
        f"NUMA node {format_list(p['spans'])}"
    )
    yield f"  communication  {own.get('communication', 'shared with compute')}"
    yield f"  readers        {own.get('readers', 'shared with compute')}"
    memory = p["memory"]
    yield f"  memory         {f'prefers NUMA node {format_list(memory)}' if memory else 'where it is first touched'}"


def _exchange_lines(e: dict):
    if e:
        how = "in a thread of its own" if e["overlapped"] else "between the layers"
        yield f"gradients: {e['how']}, {e['wire']}, over {e['over']}, {e['buckets']} buckets, exchanged {how}"
        if e["curve"]:
            alpha, beta = e["curve"]["alpha_s"] * 1e6, e["curve"]["bytes_per_s"] / 1e9
            yield (
                f"buckets of {e['bucket_bytes'] / 2**20:g} MiB: an exchange takes {alpha:.1f} us + bytes / "
                f"({beta:.2f} GB/s), the size is near sqrt(gradient bytes * latency * bandwidth)"
            )


def _startup(r, verbose):
    if verbose:
        parts = r["seconds"]
        text = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in parts.items())
        yield f"start-up {sum(parts.values()):.1f} s: {text}"


def _end(r, verbose):
    if r["state"] == "stopped":
        yield f"stopped as asked after step {r['step']}; {r['advice']}"
    else:
        best = f"best checkpoint: {r['best_checkpoint']}; " if r["best_checkpoint"] else ""
        yield f"done; {best}evaluate with: knltrain evaluate {r['run']}"


WORDS = {"begin": _begin, "startup": _startup, "end": _end, "note": lambda r, verbose: [r["text"]]}


def _progress(board, total) -> str:
    r = board.step
    parts = [f"step {r['step']:.0f}/{total}", f"epoch {r['epoch']:.2f}", f"loss {board.losses.recent:.4f}"]
    parts += [f"top-1 {board.accuracy:.1%}", f"lr {r['lr']:.4g}"]
    if r["images_per_s"] > 0 and r["left_s"] >= 0:
        parts += [rate(r["images_per_s"]), f"{duration(r['left_s'])} left"]
    return "  ".join(parts)


def _epoch(r) -> str:
    parts = [f"epoch {r['epoch']:g}/{r['epochs']:g}", f"train loss {r['loss']:.4f} top-1 {r['accuracy']:.1%}"]
    if r["top1"] is not None:
        parts.append(f"val top-1 {r['top1']:.2%} top-5 {r['top5']:.2%}")
        best, epoch = r["best_top1"], r["best_epoch"]
        parts.append("best so far" if epoch == r["epoch"] else f"best {best:.2%} (epoch {epoch:g})")
    parts += [rate(r["images_per_s"])] if r["images_per_s"] else []
    return "  ".join([*parts, duration(r["seconds"])])


def _evaluation(r) -> str:
    shares = f"top-1 {r['top1']:.2%}, top-5 {r['top5']:.2%}"
    return f"evaluation after epoch {r['epoch']:.2f}: {shares} of {r['images']} images"


# ---- the terminal ------------------------------------------------------------------------------------------------


def _terminal(stream) -> int | None:
    """A file number of the terminal that shows what is written to `stream`; None where there is none.

    A rank writes into a pipe that a launcher's process reads. The terminal is then that of the uppermost launcher above
    this process, where that is on this node.
    """
    try:
        if stream.isatty():
            return stream.fileno()
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            return None
        chain = _launchers()
        pipe = os.readlink(f"/proc/self/fd/{stream.fileno()}")
        if not chain or not any(os.readlink(file) == pipe for file in Path(f"/proc/{chain[0]}/fd").iterdir()):
            return None
        shown = os.open(f"/proc/{chain[-1]}/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    if os.isatty(shown):
        return shown
    os.close(shown)
    return None


def _launchers() -> list[int]:
    """The processes above this one that belong to a launcher, the nearest first."""
    found, process = [], os.getppid()
    while process > 1:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:2]  # the second of a script's
        if any(name in os.path.basename(os.fsdecode(word)) for word in words for name in LAUNCHERS):
            found.append(process)
        elif found:
            break
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return found
