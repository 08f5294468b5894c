"""What a reader must know of all shards of a folder: where every row lies, its label, its checksum."""

import hashlib
import json
from pathlib import Path

import numpy as np

from .shards import Shard, ShardError

SAME = ("encoding", "size", "fit", "total_rows", "plan")  # in all shards of a data set


def find_shards(folder: Path) -> list[Path]:
    """The shards of a folder, sorted. Raises: ShardError if there is none."""
    if not folder.is_dir():
        raise ShardError(f"{folder}: found no such folder, expected shards: make them with `knltrain pack`")
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        below = sorted({str(path.parent) for path in folder.glob("*/*.h5")})
        cure = f"there are some in {', '.join(below[:3])}" if below else "make them with `knltrain pack`"
        raise ShardError(f"{folder}: found no *.h5 file, expected shards: {cure}")
    return paths


def check_complete(shards: list) -> None:
    """Raise ShardError unless these are all shards of one data set, in order."""
    first, expected_row = shards[0], 0
    for shard in shards:
        for name in SAME:
            if getattr(shard, name) != getattr(first, name):
                raise shard.error(
                    f"found another {name} than in {first.path.name}, expected the same in all shards: "
                    "keep each data set in a folder of its own"
                )
        if not np.array_equal(shard.class_names, first.class_names):
            raise shard.error(
                f"found another class_names than in {first.path.name}, expected the same in all shards: "
                "keep each data set in a folder of its own"
            )
        if shard.first_row != expected_row:
            raise shard.error(
                f"found first row {shard.first_row}, expected {expected_row}: a shard is missing or doubled, "
                "copy or pack the data again"
            )
        expected_row += shard.rows
    if expected_row != first.total_rows:
        raise ShardError(
            f"{first.path.parent}: found {expected_row} rows in {len(shards)} shards, expected {first.total_rows}: "
            "a shard is missing, copy or pack the data again"
        )


def read_index(folder: Path) -> dict:
    """Everything a reader must know of the shards of a folder, as flat arrays and JSON-able values."""
    paths = find_shards(folder)
    first = Shard(paths[0])
    shards = [Shard(path).lean(first) for path in paths]
    check_complete(shards)
    index = {
        "n_rows": first.total_rows,
        "encoding": first.encoding,
        "size": first.size,
        "fit": first.fit,
        "class_names": [name.decode("utf-8", "replace") for name in first.class_names],
        "files": [path.name for path in paths],
        "data_bytes": sum(shard.data_bytes for shard in shards),
        "identity": json.dumps([str(folder.resolve()), first.plan, [shard.length for shard in shards]]),
        "labels": np.concatenate([shard.labels for shard in shards]),
        "checksums": np.concatenate([shard.checksums for shard in shards]),
    }
    facts = json.dumps([first.plan, first.encoding, first.size]).encode()
    index["digest"] = hashlib.sha256(facts + index["checksums"].tobytes()).hexdigest()[:16]
    for name in ("first_row", "data_at", "names_at", "name_bytes"):
        key = "first_rows" if name == "first_row" else name
        index[key] = np.array([getattr(shard, name) for shard in shards], np.int64)
    if first.encoding == "jpeg":
        index["begins"] = np.concatenate([shard.data_at + shard.offsets[:-1] for shard in shards])
        index["lengths"] = np.concatenate([np.diff(shard.offsets).astype(np.int32) for shard in shards])
    return index
