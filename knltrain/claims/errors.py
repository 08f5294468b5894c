"""Errors become one line and an exit code, and one rank's error ends all ranks. Exit codes: see `cli`."""

import os
import sys
import time
import traceback
from contextlib import contextmanager

from .text import printable

# What the user can mend: a path or a child process, memory, an extra that is not installed, a loss that is no number,
# and every value that our checks refuse. Anything else is a defect.
EXPECTED = (OSError, MemoryError, ImportError, FloatingPointError, ValueError)


def explain(error: BaseException, rank: int | None = None) -> int:
    """Print the error on stderr, a defect with its traceback, under the rank if given; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        lines, code = ["interrupted"], 130
    elif isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it flushes at its end
        lines, code = [], 141
    else:
        expected = isinstance(error, EXPECTED)
        code = getattr(error, "exit_code", 2 if expected else 1)
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        elif not expected or not text:
            text = f"{type(error).__name__}: {text}"
        lines = [f"error: {printable(text)}", *(printable(note) for note in getattr(error, "__notes__", []) if note)]
        if not expected or os.environ.get("KNLTRAIN_DEBUG") == "1":
            lines = [*map(printable, "".join(traceback.format_exception(error)).splitlines()), *lines]
    start = "knltrain: " if rank is None else f"knltrain: rank {rank}: "
    sys.stderr.write("".join(f"{start}{line}\n" for line in lines))
    sys.stderr.flush()
    return code


@contextmanager
def all_ranks(comm):
    """Whatever escapes on one rank ends all of them.

    A rank that left alone would wait in MPI_Finalize for the others, and they for its next message. Most errors (a
    bad recipe) happen on all ranks at once: the others let rank 0 speak first, and speak only if it does not.
    """
    try:
        yield comm
    except BaseException as error:
        if comm.size == 1:
            raise
        time.sleep(1.0 if comm.rank else 0.0)
        code = explain(error, comm.rank)
        time.sleep(0.2)  # the launcher forwards what was printed before it kills
        comm.abort(code)
    else:
        comm.close()
