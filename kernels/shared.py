"""Ranks that share memory: where they meet, and the sum of their blocks at memory speed.

A meeting point is a row of int32 words: [arrivals, sleepers, unused ...], a cache line of its own. Whoever arrives adds
one; meeting number t (1, 2, ...) of `ranks` is over when arrivals reach t * ranks. The additions release what the
arriving rank wrote before and acquire what the others wrote, so plain loads and stores suffice around them. A waiting
rank spins for a moment, then offers its core a few times, then sleeps in the kernel (futex), so that more ranks
than cores do no harm: the last to arrive wakes all, once. Words wrap around; only differences count.

Everything here is serial and holds no GIL: it runs in the communication thread while the threads of the kernels work.
"""

import platform
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import inlined, kernel

_YIELDS = 30  # of the core, before sleeping
TILE = 2048  # floats summed at once: the intermediate sums of a tile stay in the first-level cache
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0
_WAIT, _WAKE = 0, 1
_PAUSE = platform.machine() == "x86_64"

_syscall = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.uintp, types.int64, types.int64, types.uintp, types.uintp, types.int64)
)
_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


def _pointer(builder, address):
    return builder.inttoptr(address, ir.IntType(32).as_pointer())


@intrinsic
def _load(typing, address):
    """The int32 at an address, ordered before everything that follows."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 4)

    return types.int32(types.uintp), generate


@intrinsic
def _add(typing, address, amount):
    """Add to the int32 at an address, ordered after all before and before all behind; returns the old value."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int32(types.uintp, types.int32), generate


@intrinsic
def _pause(typing):
    """Tell the core that this is a waiting loop."""

    def generate(context, builder, signature, arguments):
        if _PAUSE:
            hint = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


# ---- meeting -------------------------------------------------------------------------------------------------


@inlined
def _arrive(word, ranks, turn):
    """Say at a meeting point that this rank is there; the last one wakes those who sleep."""
    if _add(word, np.int32(1)) + np.int32(1) == np.int32(ranks * turn) and _load(word + 4) > 0 and _FUTEX:
        _syscall(_FUTEX, word, _WAKE, 1 << 30, np.uintp(0), np.uintp(0), 0)


@kernel
def _wait(word, ranks, turn, spins, naps):
    """Wait until all have arrived; False after `naps` naps of at most 100 ms each."""
    target = np.int32(ranks * turn)
    for _ in range(spins):
        if np.int32(_load(word) - target) >= 0:
            return True
        _pause()
    for _ in range(_YIELDS):
        _sched_yield()
        if np.int32(_load(word) - target) >= 0:
            return True
    limit = np.array([0, 100_000_000], np.int64)  # seconds, nanoseconds
    for _ in range(naps):
        _add(word + 4, np.int32(1))
        seen = _load(word)
        if np.int32(seen - target) < 0:
            if _FUTEX:  # returns at once if the word has changed since
                _syscall(_FUTEX, word, _WAIT, np.int64(seen), np.uintp(limit.ctypes.data), np.uintp(0), 0)
            else:
                _usleep(np.uint32(200))
        _add(word + 4, np.int32(-1))
        if np.int32(_load(word) - target) >= 0:
            return True
    return False


@kernel
def meet_arrive(words, ranks, turn):
    """Arrive at the meeting point `words` (16,) int32, for meeting number `turn`."""
    _arrive(np.uintp(words.ctypes.data), ranks, turn)


@kernel
def meet_wait(words, ranks, turn, spins):
    """Wait for meeting number `turn` of `ranks`; False if it is not over after about half a second: call again."""
    return _wait(np.uintp(words.ctypes.data), ranks, turn, spins, 5)


# ---- summing -------------------------------------------------------------------------------------------------


@inlined
def _add_tile(a, b, out):
    for j in range(out.size):
        out[j] = a[j] + b[j]


@inlined
def _copy_tile(a, out):
    for j in range(out.size):
        out[j] = a[j]


@inlined
def _sum_tile(blocks, start, stop, sums):
    """blocks[0, start:stop] = the sum over blocks: pairs, pairs of pairs, as a binary counter carries."""
    out = blocks[0, start:stop]
    ranks, size = blocks.shape[0], stop - start
    if ranks == 2:
        _add_tile(out, blocks[1, start:stop], out)
        return
    full = ranks // 2  # pairs; an odd rank is a pair of one
    for pair in range((ranks + 1) // 2):
        level = 0
        while pair >> level & 1:
            level += 1
        top = sums[level, :size]
        if pair < full:
            _add_tile(blocks[2 * pair, start:stop], blocks[2 * pair + 1, start:stop], top)
        else:
            _copy_tile(blocks[2 * pair, start:stop], top)
        for below in range(level):
            _add_tile(sums[below, :size], top, top)
    pairs = (ranks + 1) // 2
    level = 0
    while not pairs >> level & 1:
        level += 1
    total = sums[level, :size]
    for above in range(level + 1, sums.shape[0]):
        if pairs >> above & 1:
            _add_tile(sums[above, :size], total, total)
    _copy_tile(total, out)


@kernel
def sum_blocks(blocks, start, stop, sums):
    """blocks[0, start:stop] = sum over ranks of blocks[:, start:stop], in one fixed order.

    blocks : (ranks, n) float32, shared by the ranks of a node
    sums : (levels, TILE) float32 of scratch, from `sum_scratch`
    Order: ((0 + 1) + (2 + 3)) + ..., the tree of the exchange between nodes continues it where ranks is a power of two.
    Cost: ranks - 1 additions, 4 * ranks bytes read and 4 written per element. Serial.
    """
    if blocks.shape[0] > 1:
        for tile in range(start, stop, TILE):
            _sum_tile(blocks, tile, min(tile + TILE, stop), sums)


def sum_scratch(ranks: int) -> np.ndarray:
    """Scratch for `sum_blocks` over so many ranks."""
    return np.zeros((((ranks + 1) // 2).bit_length(), TILE), np.float32)


@kernel
def node_allreduce(words, entering, leaving, blocks, start, stop, sums, spins, phase):
    """blocks[0] = sum over blocks, of which this rank does [start, stop); returns when all ranks are done.

    words : (2, 16) int32 or more, two meeting points; entering, leaving : the numbers of these two meetings
    phase : 0 at first; where the result is not 0 the others are late: call again with it
    One call and no more for the whole exchange of a node: for small messages the way into a kernel is what costs.
    Cost: ranks - 1 flops, 4 * ranks bytes read and 4 written a number of [start, stop).
    """
    ranks = blocks.shape[0]
    entered, done = np.uintp(words[0].ctypes.data), np.uintp(words[1].ctypes.data)
    if phase == 0:
        _arrive(entered, ranks, entering)
    if phase <= 1:
        if not _wait(entered, ranks, entering, spins, 5):
            return 1
        for tile in range(start, stop, TILE):
            _sum_tile(blocks, tile, min(tile + TILE, stop), sums)
        _arrive(done, ranks, leaving)
    return 0 if _wait(done, ranks, leaving, spins, 5) else 2
