"""Checkpoints: one HDF5 file a step, whole or absent, every byte of content under a checksum.

File, version 1: attributes `format` and `version`; dataset `contents` (uint8, JSON): step, meta, names of the arrays;
group `arrays`: one dataset per array at its name. Each dataset has an attribute `crc32` over its name, type, shape and
bytes. A file is written under a temporary name, synced, renamed, and the folder synced; `best.json` names the best one.
"""

import json
import math
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..claims.hdf5 import Untrusted, attributes, opened, stored, written
from ..claims.keys import Rule, shown
from ..claims.text import printable
from ..claims.whole import TEMPORARY, write_whole

FORMAT, VERSION = "knltrain-checkpoint", 1
FACTS = {
    "format": Rule("what the file is", str, one_of=(FORMAT,)),
    "version": Rule("of the format", int, one_of=(VERSION,)),
}
CONTENTS = {
    "step": Rule("steps done", int, most=10**15),
    "names": Rule("of the arrays", list),
    "meta": Rule("see META", dict),
}
META = {
    "step": CONTENTS["step"],
    "previous_lr": Rule("learning rate of the last step", float),
    "experiment": Rule("all that the result depends on", dict),
}
PHASE = {"phase": Rule("how many phases of the recipe had begun; in META where it has any", int)}
LOSS_SCALE = {  # in META where the loss has a scale
    "scale": Rule("of the gradients", float, one_of=tuple(2.0**k for k in range(25))),
    "good": Rule("steps since it changed", int),
    "failed": Rule("steps skipped in a row", int),
    "skipped": Rule("steps skipped in all", int),
}
CRC32 = {"crc32": Rule("of name, type, shape and bytes", int, most=2**32 - 1)}
FOLDER, BEST = "checkpoints", "best.json"  # in a run folder, and in that one
NAME = re.compile(r"checkpoint-(\d+)\.h5")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or trusted; one line: which, what was found, what to do."""


# ---- writing -------------------------------------------------------------------------------------------------


def save(folder, step: int, arrays: dict[str, np.ndarray], meta: dict, *, keep: int, best_metric=None) -> Path:
    """Write arrays and meta as the checkpoint of `step`, then drop old ones; returns the file's path.

    arrays : by name ("value/conv1.w"), any numeric dtype and shape; read only
    meta : JSON-able, with what META asks for; comes back from `load` with "step" added
    keep : the newest so many files up to `step` stay, and the best
    best_metric : this step's metric (higher is better), if it was measured

    Raises CheckpointError when the disk refuses; then nothing new stands in the folder and what was there is untouched.
    """
    folder = Path(folder)
    path = folder / f"checkpoint-{step:07d}.h5"
    try:
        folder.mkdir(exist_ok=True)  # not its parent: a run folder that is gone must be noticed
        for left_over in folder.glob(f"*{TEMPORARY}"):  # of a run that was killed while it wrote
            left_over.unlink()
        save_file(path, step, arrays, meta)
        if best_metric is not None:
            _note_best(folder, path.name, step, float(best_metric))
        _drop_old(folder, step, keep)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); free space or choose another run folder") from None
    return path


def save_file(path: Path, step: int, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Write one file in the format of a checkpoint, whole or not at all. Raises OSError."""
    contents = json.dumps({"step": step, "meta": {**meta, "step": step}, "names": list(arrays)})
    write_whole(path, lambda temporary: _write(temporary, contents, arrays))


def _write(path: Path, contents: str, arrays: dict[str, np.ndarray]):
    with written(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        _put(file, "contents", np.frombuffer(contents.encode(), np.uint8))
        group = file.create_group("arrays")
        for name, array in arrays.items():
            _put(group, name, np.asarray(array))


def _put(group, name: str, array: np.ndarray):
    if array.dtype.hasobject:
        raise TypeError(f"array {name} has dtype {array.dtype}; expected numbers")
    dataset = group.create_dataset(name, data=array)
    dataset.attrs["crc32"] = _checksum(name, array)


def _checksum(name: str, array: np.ndarray) -> np.uint32:
    head = f"{name} {array.dtype.str} {array.shape}".encode()
    return np.uint32(zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), zlib.crc32(head)))


def _note_best(folder: Path, name: str, step: int, metric: float):
    best = _read_best(folder)
    if best is None or metric > best["metric"] or not (folder / best["name"]).exists():
        text = json.dumps({"name": name, "step": step, "metric": metric})
        write_whole(folder / BEST, text + "\n")


def _read_best(folder: Path) -> dict | None:
    try:
        best = json.loads((folder / BEST).read_text())
        return best if NAME.fullmatch(best["name"]) and math.isfinite(best["metric"]) else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _drop_old(folder: Path, step: int, keep: int):
    """Files of later steps (of a run that went further before it was resumed here) neither count nor go."""
    best = best_checkpoint(folder)
    older = [path for path in checkpoints(folder) if _step(path) <= step]
    for path in older[: -max(1, keep)]:
        if path != best:
            path.unlink()


# ---- reading -------------------------------------------------------------------------------------------------


def checkpoints(folder) -> list[Path]:
    """The checkpoints of a run folder, oldest step first; empty when there are none or no folder."""
    return sorted((p for p in Path(folder).glob("checkpoint-*.h5") if NAME.fullmatch(p.name)), key=_step)


def best_checkpoint(folder) -> Path | None:
    """The checkpoint with the highest metric, or None where none was measured."""
    best = _read_best(Path(folder))
    path = Path(folder) / best["name"] if best else None
    return path if path and path.exists() else None


def advice(run_dir) -> str:
    """What there is to go on from in a run folder, and the command that does; "" where there is nothing."""
    newest = next(reversed(checkpoints(Path(run_dir) / FOLDER)), None)
    if newest is None:
        return ""
    return (
        f"newest checkpoint: {newest}; go on with: "
        f"knltrain train {Path(run_dir) / 'recipe.toml'} --run {run_dir} --resume auto"
    )


def _step(path: Path) -> int:
    return int(NAME.fullmatch(path.name).group(1))


def load(path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, meta) of a checkpoint, to the bit as they were saved.

    Raises CheckpointError for a file that is absent, foreign, of another version, truncated or damaged anywhere.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; expected a file written by `knltrain train`")
    try:
        with opened(path) as file:
            return _read(path, file)
    except Untrusted as error:
        raise CheckpointError(f"{path}: {error}: use another checkpoint") from None
    except Exception as error:  # h5py raises nearly every kind of error on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: truncated or damaged ({reason}): use another checkpoint") from None


def print_warning(message):
    print(f"knltrain: warning: {printable(str(message))}", file=sys.stderr)


def load_latest(folder, warn: Callable[[str], None]) -> tuple[dict[str, np.ndarray], dict] | None:
    """(arrays, meta) of the newest checkpoint that is whole; None when the folder holds none at all.

    A damaged one is reported through `warn` and the one before it is tried. Raises CheckpointError when all are
    damaged: to begin again from nothing must be asked for, not happen.
    """
    return _first_whole(checkpoints(folder)[::-1], folder, warn, "; remove them to start from step 0")


def _first_whole(paths: list[Path], folder, warn, cure: str) -> tuple[dict[str, np.ndarray], dict] | None:
    for number, path in enumerate(paths, 1):
        try:
            return load(path)
        except CheckpointError as error:
            warn(f"{error}; trying {paths[number].name}" if number < len(paths) else str(error))
    if paths:
        raise CheckpointError(f"{folder}: all {len(paths)} checkpoints are damaged{cure}")
    return None


def _read(path: Path, file) -> tuple[dict[str, np.ndarray], dict]:
    attributes(file.id, FACTS)
    contents = json.loads(_get(file, "contents", "contents").tobytes())
    _check(contents, CONTENTS)
    meta = contents["meta"]
    _check(meta, META)
    if "phase" in meta:
        _check(meta, PHASE)
    if "loss_scale" in meta:
        _check(meta["loss_scale"], LOSS_SCALE)
    named = NAME.fullmatch(path.name)
    if {meta["step"], contents["step"], int(named.group(1)) if named else meta["step"]} != {meta["step"]}:
        raise Untrusted(f"found step {meta['step']}, expected that of the file's name")
    return {name: _get(file, f"arrays/{name}", name) for name in map(str, contents["names"])}, meta


def _check(table, rules):
    if not isinstance(table, dict):
        raise Untrusted(f"found {shown(table)}, expected a table")
    for name, rule in rules.items():
        expected = rule.expected(table.get(name))
        if expected:
            raise Untrusted(f"found {name} {shown(table.get(name))}, expected {expected}")


def _get(file, place: str, name: str) -> np.ndarray:
    """The array at a place in the file, whose checksum counts its name."""
    found = stored(file, place)
    if found.dtype.kind not in "biuf":
        raise Untrusted(f"found array {shown(name)} of {found.dtype}, expected numbers")
    array = found.read()
    checksum, expected = _checksum(name, array), attributes(found.dataset, CRC32)["crc32"]
    if checksum != expected:
        raise Untrusted(f"array {shown(name)} has checksum {checksum:08x}; expected {expected:08x}")
    return array


def load_run(path: Path, warn: Callable[[str], None] = print_warning) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, meta) of a checkpoint file; of a run folder the best, or where that is damaged the newest good one."""
    if not path.exists():
        raise CheckpointError(f"{path}: no run folder, nor a checkpoint in one; expected what `knltrain train` wrote")
    if path.is_file():
        return load(path)
    best, note = best_checkpoint(path / FOLDER), path / FOLDER / BEST
    if best is None and note.exists():
        warn(f"{note}: damaged, or names no checkpoint that is there; the newest is taken, not the best")
    best_first = sorted(checkpoints(path / FOLDER)[::-1], key=lambda one: one != best)
    found = _first_whole(best_first, path / FOLDER, warn, "; name another run")
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint in this run yet; train it first")
    return found
