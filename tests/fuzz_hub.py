"""Damaged parquet files and hostile WebDataset tars for `knltrain pack`, for fuzz.py."""

import io

from fuzz import Case, Kind
from fuzz_pack import NUMBERS, damaged, header, padded, picture, rows_of

from knltrain.data.classes import MOST_CLASSES
from knltrain.data.samples import LONGEST

LABELS = [*NUMBERS, "", "\0", "7\n", "０", "²", "65535", "65536", "00000000000000000007"]


def parquet(random, folder):
    """A table of pictures, a few of its bytes changed, cut or doubled: read, or refused in one line."""
    import pyarrow
    from pyarrow import parquet

    count = int(random.integers(1, 12))
    pictures = [{"bytes": picture(random), "path": None} for _ in range(count)]
    table = pyarrow.table({"image": pictures, "label": random.integers(0, 3, count)})
    whole = io.BytesIO()
    codec = ("snappy", "zstd", "none")[random.integers(3)]
    parquet.write_table(table, whole, compression=codec, row_group_size=4)
    (folder / "a.parquet").write_bytes(damaged(random, whole.getvalue()))
    return _case(folder, "a.parquet")


def samples(random, folder):
    """Samples, one of them with a label that may be none."""
    parts, label = [], LABELS[random.integers(len(LABELS))].encode()
    for i in range(3):
        for kind, data in (("png", picture(random, "PNG")), ("cls", label if i == 1 else b"1")):
            parts.append(header(random, f"{i}.{kind}".encode(), len(data)) + padded(data))
    (folder / "a.tar").write_bytes(b"".join(parts) + bytes(1024))
    fits = len(label) <= LONGEST and label.strip().isdigit() and int(label) < MOST_CLASSES
    return _case(folder, "a.tar", hostile=not fits)


def _case(folder, name, hostile=False):
    argv = ["pack", str(folder / name), str(folder / "out"), "--size", "16", "--max-bad", "1.0"]

    def verdict(code, text):
        if hostile and code == 0:
            return "accepted silently"
        return "" if code or rows_of(folder / "out") else "no rows"

    return Case(argv, verdict)


KINDS = {"pack_parquet": Kind(200, parquet), "pack_samples": Kind(100, samples)}
