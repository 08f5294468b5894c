"""The one policy for compiling and threading: flags, on-disk cache, OpenMP runtime.

Numba's cache does not notice that a function in *another* file changed, so the cache folder carries a hash of
every source file of this package, and Numba's version: an edit anywhere starts a fresh folder, and nothing stale is
ever loaded.
"""

import ctypes
import hashlib
import os
import sys
from pathlib import Path

import numba

# ---- on-disk cache -------------------------------------------------------------------------------------------


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _cache_root() -> Path:
    """NUMBA_CACHE_DIR where it is set, else the user's cache folder."""
    explicit = os.environ.get("NUMBA_CACHE_DIR")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knltrain"


CACHE_DIR = _cache_root() / f"kernels-{_source_hash()}"
numba.config.CACHE_DIR = str(CACHE_DIR)

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
    decorate = numba.njit(
        nogil=True, cache=True, error_model="numpy", boundscheck=False, fastmath={"contract"}, parallel=parallel
    )
    return decorate if function is None else decorate(function)


def set_threads(count: int) -> None:
    """Run the kernels of this process on `count` threads. Raises ValueError for more than Numba was started with."""
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"found {count} threads, expected 1 to {most}: set NUMBA_NUM_THREADS before the start")
    numba.set_num_threads(count)
