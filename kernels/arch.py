"""Facts of the machine as data: vector width and register tile. No other file asks which CPU this is.

Rows are pixels (forward, backward-input): the last tile of many. Columns are input channels (backward-weight), mostly
powers of two: 5 x 13 covers 64 with one to spare, 10 x 13 covers 128 with two.

`NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` override what is found, as they do for Numba's own code generation; both
are part of the key of its on-disk cache, so folders may be shared between node types.
"""

import ctypes
import os
import sys
from dataclasses import dataclass

import llvmlite.binding as llvm

from .number import FP32, Number

_NAMED_CPUS = {  # NUMBA_CPU_NAME alone does not tell its features: the ones we are tested with
    "knl": {"avx512f", "avx512cd", "avx2", "fma"},
    "skylake-avx512": {"avx512f", "avx2", "fma"},
    "cascadelake": {"avx512f", "avx2", "fma"},
    "cooperlake": {"avx512f", "avx512bf16", "avx2", "fma"},
    "znver4": {"avx512f", "avx512bf16", "avx2", "fma"},
    "sapphirerapids": {"avx512f", "avx512bf16", "amx-bf16", "avx2", "fma"},
    "haswell": {"avx2", "fma"},
    "generic": set(),
}


@dataclass(frozen=True)
class Tile:
    """A register tile of the micro-kernel: `rows` (or `columns`) x `vectors` vectors of `width` float32 sums."""

    width: int
    rows: int
    columns: int
    vectors: int


# instruction set → Number that is multiplied → tile
_TILES = {
    "avx512": {FP32: Tile(16, 14, 13, 2)},  # KNL, SKX..: 28 of 32 registers hold C, 2 hold B, 1 or 2 hold A
    "avx2": {FP32: Tile(8, 6, 6, 2)},  # with FMA: 12 of 16 registers hold C, 2 hold B, 1 holds A
    "generic": {FP32: Tile(4, 6, 6, 2)},  # correct everywhere, tuned nowhere
}


@dataclass(frozen=True)
class Arch:
    """An instruction set by name, and its register tiles."""

    name: str

    def tile(self, number: Number = FP32) -> Tile:
        """The tile for products of `number`."""
        return _TILES[self.name][number]


def _features() -> set[str]:
    name = os.environ.get("NUMBA_CPU_NAME")
    listed = os.environ.get("NUMBA_CPU_FEATURES")
    if listed:
        return {item[1:] for item in listed.split(",") if item.startswith("+")}
    if name and name != "host":
        return _NAMED_CPUS.get(name, set())
    return {feature for feature, present in llvm.get_host_cpu_features().items() if present}


def detect() -> Arch:
    """The instruction set of the CPU that code is generated for."""
    features = _features()
    if "avx512f" in features:
        return Arch("avx512")
    if {"avx2", "fma"} <= features:
        return Arch("avx2")
    return Arch("generic")


ARCH = detect()
MR, MC, NV, V = (getattr(ARCH.tile(), side) for side in ("rows", "columns", "vectors", "width"))
REST = MR // 2 - 1  # rows of a smaller tile, for what is left over
FEW = MC * 3 // 4  # columns of a smaller tile, for the same
BLOCK = NV * V  # channels of a tile
CPU = f"{os.environ.get('NUMBA_CPU_NAME') or llvm.get_host_cpu_name()}: {' '.join(sorted(_features()))}"  # compiled for
LINE = 64  # bytes of a cache line, on all of them
LINE_FLOATS = LINE // FP32.bytes
CRC32C = bool(_features() & {"sse4.2", "avx2", "avx512f"})  # x86 has an instruction for this checksum since SSE4.2

# ---- products of 16-bit tensors ------------------------------------------------------------------------------

DOTS = ("amx", "dot2", "widen")  # tiles of pairs of bf16; vectors of pairs; every number widened, then as float32
_REQUEST, _TILE_DATA, _ARCH_PRCTL = 0x1023, 18, 158  # Linux on x86-64: ask for the state of the tiles, once a process


def _tiles() -> bool:
    """Whether there are instructions on tiles, and this process may use them: asked for before threads start."""
    if "amx-bf16" not in _features():
        return False
    if os.environ.get("NUMBA_CPU_NAME", "host") != "host":
        return True  # code is generated for another machine
    if ctypes.CDLL(None, use_errno=True).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0:
        return True
    reason = os.strerror(ctypes.get_errno())
    print(f"knltrain: note: this CPU has AMX, the kernel does not allow it ({reason}): not used", file=sys.stderr)
    return False


HAS_DOT = {"avx512f", "avx512bf16"} <= _features()  # an instruction that multiplies pairs of bf16
HAS_TILES = HAS_DOT and _tiles()
DOT = os.environ.get("KNLTRAIN_DOT") or ("amx" if HAS_TILES else "dot2" if HAS_DOT else "widen")
if DOT not in DOTS:
    raise ValueError(f"KNLTRAIN_DOT: found {DOT!r}, expected one of {', '.join(DOTS)}: correct it or unset it")


def product(precision: str) -> str:
    """What convolutions multiply in a precision: "fp32", or pairs of bf16 by "dot2" or "amx"."""
    return DOT if precision == "bf16" and DOT != "widen" else "fp32"
