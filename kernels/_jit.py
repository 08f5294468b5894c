"""The one policy for compiling and threading: flags, on-disk cache, OpenMP runtime.

Numba's cache does not notice that a function in *another* file changed, so the cache folder carries a hash of
every source file of this package, Numba's version, and the name the package was imported by, by which a kernel's
types are found again: an edit anywhere starts a fresh folder, and nothing stale is ever loaded. What is in it does not
depend on where the sources lie: a checkout, its clones and a wheel share it.
"""

import contextlib
import ctypes
import fcntl
import functools
import gc
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import llvmlite.binding as llvm
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.runtime import rtsys

from .private import claim

_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")  # where launchers put it: one of many ranks speaks
_COMPILES_S = 120.0  # the slowest kernel takes a tenth of that

# ---- on-disk cache -------------------------------------------------------------------------------------------


def _source_hash() -> str:
    digest = hashlib.sha256(f"{numba.__version__} {__package__}".encode())
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


class _Locator:
    """Numba's question where a kernel is kept. Its own answers are by the path of the source and its time."""

    def __init__(self, function, file):
        self._py_file, self._line = file, function.__code__.co_firstlineno

    from_function = classmethod(lambda cls, function, file: cls(function, file))

    def ensure_cache_path(self):
        cache_folder()

    def get_cache_path(self):
        return str(cache_folder())

    def get_source_stamp(self):
        return ""  # the folder's name carries one of all sources

    def get_disambiguator(self):
        return str(self._line)


class _Files(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _NumbaCache(FunctionCache):
    _impl_class = _Files


class _Cache:
    """A kernel's cache on disk, looked for when the kernel is first called: who compiles nothing needs no place.

    Of processes that miss a kernel at once one compiles it, and the others wait and load. A file is locked from the
    miss until the result is saved, so that Numba's index, too, is written by one at a time.
    """

    def __init__(self, function):
        self._function, self._lock = function, None

    @functools.cached_property
    def _found(self):
        return _NumbaCache(self._function)

    def load_overload(self, signature, target):
        found = self._load(signature, target)
        if found is None and self._lock is None:
            self._lock = _lock(cache_folder() / f"{self._function.__module__}.{self._function.__qualname__}.lock")
            found = self._load(signature, target)
            if found is not None:
                self.release()
        return found

    def _load(self, signature, target):
        rtsys.initialize(target)  # all that a kernel needs of what Numba prepares here; its compiler asks for the rest
        with _libraries(target.codegen(), _Kernel):
            return self._found._load_overload(signature, target)

    def save_overload(self, signature, result):
        try:
            self._found.save_overload(signature, result)
        finally:
            self.release()

    def release(self):
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


class _Kernel(JITCodeLibrary):
    """A kernel as a whole. Its intermediate code is read from disk only for another kernel that calls it."""

    def serialize_using_object_code(self):
        name, kind, (machine_code, intermediate) = super().serialize_using_object_code()
        symbols = [symbol.name for symbol in self.get_defined_functions()]
        return name, kind, (machine_code, intermediate, symbols)

    @classmethod
    def _unserialize(cls, codegen, state):
        name, _, (machine_code, intermediate, symbols) = state
        self = codegen.create_library(name)
        self.enable_object_caching()
        self._set_compiled_object(machine_code)
        self._finalize_final_module()
        codegen._engine._defined_symbols.update(symbols)
        self._intermediate = intermediate
        return self

    def _get_module_for_linking(self):
        if self._shared_module is None and hasattr(self, "_intermediate"):
            self._shared_module = llvm.parse_bitcode(self._intermediate)
        return super()._get_module_for_linking()


class _Part(JITCodeLibrary):
    """What is compiled to become part of a kernel: LLVM's intermediate code alone.

    Numba would optimize each function and translate it to machine code, and do both again with each that calls it.
    """

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    @property
    def codegen(self):  # which Numba asks for one thing: to tell code that there is not where its Python objects are
        return SimpleNamespace(set_env=lambda name, environment: None)


class _Compiler(Compiler):
    """Numba's compiler; but machine code is made of the kernel as a whole, not of its parts."""

    def __init__(self, typing, target, library, *others):
        if library is None:
            library = _Kernel(target.codegen(), "kernel")
            library.enable_object_caching()
        super().__init__(typing, target, library, *others)

    def compile_extra(self, function):
        with _libraries(self.state.targetctx.codegen(), _Part), _uncollected():
            return super().compile_extra(function)


@contextlib.contextmanager
def _libraries(codegen, kind):
    """Within, Numba makes libraries of that kind."""
    before, codegen._library_class = codegen._library_class, kind
    try:
        yield
    finally:
        codegen._library_class = before


@contextlib.contextmanager
def _uncollected():
    """Within, Python looks for no cycles: a tenth of a compilation went into walks over objects that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_FLAGS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": {"contract"}}


def kernel(function=None, *, parallel=False):
    """Compile `function` as every kernel is compiled: no GIL, cached on disk, a*b+c may become one FMA.

    No other fast-math: sums keep the order in which they are written, so results do not depend on vector width
    or thread count.
    """
    if function is None:
        return functools.partial(kernel, parallel=parallel)
    compiled = numba.njit(parallel=parallel, pipeline_class=_Compiler, no_cfunc_wrapper=True, **_FLAGS)(function)
    cache = compiled._cache = _Cache(function)  # what cache=True does, but that asks for the folder at once
    compiled._compiler.compile = functools.partial(_compile, compiled._compiler.compile, cache)
    return compiled


def _compile(compiler, cache, *arguments):
    """Compile; if that fails, those who wait for the result need not wait until this process ends."""
    try:
        return compiler(*arguments)
    except BaseException:
        cache.release()
        raise


def inlined(function):
    """Compile `function` as a part of each kernel that calls it. Python cannot call it."""
    part = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_FLAGS)(function)
    part._insert = lambda *overload: None  # so that Python finds nothing to call, and asks for more
    part._compile_for_args = functools.partial(_refuse, function)
    return part


def _refuse(function, *_):
    raise TypeError(f"{function.__qualname__} is compiled as a part of kernels: call one of them, or its py_func")


def set_threads(count: int) -> None:
    """Run the kernels of this process on `count` threads. Raises ValueError for more than Numba was started with."""
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"found {count} threads, expected 1 to {most}: set NUMBA_NUM_THREADS before the start")
    numba.set_num_threads(count)
