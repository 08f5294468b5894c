"""The one policy for compiling and threading: flags, on-disk cache, OpenMP runtime.

Numba's cache does not notice that a function in *another* file changed, so the cache folder carries a hash of
every source file of this package, and Numba's version: an edit anywhere starts a fresh folder, and nothing stale is
ever loaded.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numba
from numba.core.caching import FunctionCache

from .private import claim

_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")  # where launchers put it: one of many ranks speaks
_COMPILES_S = 120.0  # the slowest kernel takes a tenth of that

# ---- on-disk cache -------------------------------------------------------------------------------------------


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


_NAME = f"kernels-{_source_hash()}"  # as this process imports them


def _usual_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knltrain"


def cache_folder() -> Path:
    """Where compiled kernels are kept: below NUMBA_CACHE_DIR where it is set, else in the user's cache folder.

    The first call makes the folder, and sees that it is this user's alone and takes files; else one line on stderr says
    why, and it is a private one in TMPDIR. Raises ValueError where that is not ours either.
    """
    return _cache_below(os.environ.get("NUMBA_CACHE_DIR", ""))


@functools.cache
def _cache_below(root: str) -> Path:
    try:
        return _claim_writable(Path(root or _usual_root()) / _NAME)
    except (OSError, ValueError, RuntimeError) as problem:  # RuntimeError: a user without a home
        instead = Path(os.environ.get("TMPDIR") or "/tmp") / f"knltrain-{os.getuid()}" / _NAME
        try:
            folder = _claim_writable(instead)
        except (OSError, ValueError) as error:
            asked = "set NUMBA_CACHE_DIR or XDG_CACHE_HOME"
            raise ValueError(f"no place for compiled kernels ({error}): {asked}") from None
        if not any(os.environ.get(rank, "0") != "0" for rank in _RANKS):
            print(
                f"knltrain: note: no place for compiled kernels ({problem}): they are in {folder}; "
                "NUMBA_CACHE_DIR or XDG_CACHE_HOME names a place that stays",
                file=sys.stderr,
            )
        return folder


def _claim_writable(folder: Path) -> Path:
    with tempfile.TemporaryFile(dir=claim(folder)) as probe:
        probe.write(bytes(4096))  # under a full quota files can be made, but not filled
    return folder


class _Cache:
    """A kernel's cache on disk, looked for when the kernel is first called: who compiles nothing needs no place.

    Of processes that miss a kernel at once one compiles it, and the others wait and load. A file is locked from the
    miss until the result is saved, so that Numba's index, too, is written by one at a time.
    """

    def __init__(self, function):
        self._function, self._lock = function, None

    @functools.cached_property
    def _found(self):
        numba.config.CACHE_DIR = str(cache_folder())
        return FunctionCache(self._function)

    def load_overload(self, signature, target):
        found = self._found.load_overload(signature, target)
        if found is None and self._lock is None:
            self._lock = _lock(cache_folder() / f"{self._function.__module__}.{self._function.__qualname__}.lock")
            found = self._found.load_overload(signature, target)
            if found is not None:
                self._unlock()
        return found

    def save_overload(self, signature, result):
        try:
            self._found.save_overload(signature, result)
        finally:
            self._unlock()

    def _unlock(self):
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __getattr__(self, name):
        return getattr(self._found, name)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of `path`; None where a file system has no locks, or nobody seems to let go."""
    end = time.monotonic() + _COMPILES_S
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > end:
                os.close(descriptor)
                return None
        time.sleep(0.02)


# ---- OpenMP --------------------------------------------------------------------------------------------------


def _load_openmp() -> str:
    """Make Intel's OpenMP the runtime behind Numba's `omp` layer, and say which layer is used.

    pip's Numba links libgomp; loading libiomp5 first and globally lets its symbols win, and only then do the KMP_*
    variables act. The `omp` layer still needs libgomp.so.1 to be present on the system: where it is missing Numba
    would silently fall back to its `workqueue` layer, whose fork/join costs 100 us instead of 2.
    """
    for folder in (Path(sys.prefix) / "lib", Path(__file__).resolve().parents[1] / "lib"):
        library = folder / "libiomp5.so"
        if library.exists():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            break
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError as error:
        print(
            f"knltrain: warning: no OpenMP threading ({error}); found only Numba's slower workqueue layer. "
            "Install the system's libgomp (Debian: apt-get install libgomp1).",
            file=sys.stderr,
        )
        return "workqueue"
    return "omp"


THREADING_LAYER = _load_openmp()
numba.config.THREADING_LAYER = THREADING_LAYER

# ---- compiling -----------------------------------------------------------------------------------------------


def kernel(function=None, *, parallel=False):
    """Compile `function` as every kernel is compiled: no GIL, cached on disk, a*b+c may become one FMA.

    No other fast-math: sums keep the order in which they are written, so results do not depend on vector width
    or thread count.
    """
    if function is None:
        return functools.partial(kernel, parallel=parallel)
    compiled = numba.njit(
        nogil=True, error_model="numpy", boundscheck=False, fastmath={"contract"}, parallel=parallel
    )(function)  # fmt: skip
    compiled._cache = _Cache(function)  # what cache=True does, but that asks for the folder at once
    return compiled


def set_threads(count: int) -> None:
    """Run the kernels of this process on `count` threads. Raises ValueError for more than Numba was started with."""
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"found {count} threads, expected 1 to {most}: set NUMBA_NUM_THREADS before the start")
    numba.set_num_threads(count)
