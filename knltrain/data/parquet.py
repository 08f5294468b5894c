"""Parquet files of pictures, as on the hubs of data sets: a column of encoded pictures, and one of labels.

Pictures lie in compressed pages, in the order of the table, and are packed in another one. So they are copied once, in
one pass, to a temporary file without a name (in TMPDIR), from which they are read like files.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from .classes import names_of, read_classes
from .entries import MAX_FILE_BYTES, MAX_RATIO, Entry
from .files import OpenFile

BATCH_ROWS = 16  # at a time in memory, of up to MAX_FILE_BYTES each
PICTURES, LABELS = ("image", "img", "picture"), ("label", "labels", "cls", "class", "target")


def list_parquet(files: list[Path], synsets: Path | None) -> tuple[list[str], list[Entry]]:
    """Class names and pictures of parquet files; needs pyarrow.

    The pictures: a column of bytes, or of structs with a field `bytes`; of several the one called `image` or `img`. The
    labels: a column of numbers or texts called `label` or alike, or the first that the file's own description calls a
    ClassLabel. Names of numbers: from `synsets`, from that description, or the numbers themselves.

    Raises: ValueError if there are no such columns; OSError if TMPDIR has no room for the pictures.
    """
    pyarrow, parquet = _pyarrow()
    total, folder = sum(path.stat().st_size for path in files), tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < total:
        raise OSError(f"{folder}: found room for {free / 1e6:,.0f} MB, expected {total / 1e6:,.0f} MB: set TMPDIR")
    found, names = [], None
    with tempfile.TemporaryFile() as file:
        held = OpenFile(f"/proc/self/fd/{file.fileno()}")  # outlives its name
        for path in files:
            try:
                table = parquet.ParquetFile(path)
                description = _description(table.schema_arrow)
                picture, label = _columns(path, table.schema_arrow, description, pyarrow.types)
                own = _own_names(description, label)
                if found and own != names:
                    raise ValueError(f"{path}: found other class names than in {files[0]}, expected the same")
                names = own
                for row, (data, value) in enumerate(_rows(table, picture, label)):
                    found.append((value, _copy(data, file, path, row, held)))
                    if file.tell() > max(MAX_FILE_BYTES, MAX_RATIO * total):
                        raise ValueError(f"{path}: found pictures of more than {MAX_RATIO} times the files: refused")
            except (pyarrow.ArrowException, EOFError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{path}: found no parquet file that can be read ({reason}), expected one") from None
        file.flush()
    return _named(found, files[0], synsets, names)


def _pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError("found no pyarrow to read parquet with: pip install knltrain[parquet]") from None
    return pyarrow, parquet


def _description(schema):
    """What the writer of a file says of its columns, by their names; {} where it says nothing that can be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: about for name, about in found.items() if isinstance(about, dict)} if isinstance(found, dict) else {}


def _columns(path, schema, description, types):
    """The names of the column of pictures and of that of labels."""

    def binary(kind):
        return types.is_binary(kind) or types.is_large_binary(kind)

    pictures = [
        field.name
        for field in schema
        if binary(field.type)
        or (types.is_struct(field.type) and any(part.name == "bytes" and binary(part.type) for part in field.type))
    ]
    labels = [field.name for field in schema if types.is_integer(field.type) or types.is_string(field.type)]
    classes = [name for name in labels if description.get(name, {}).get("_type") == "ClassLabel"]
    picture = next((name for name in (*PICTURES, *pictures) if name in pictures), None)
    label = next((name for name in (*LABELS, *classes) if name in labels), None)
    if picture is None or label is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(f"{path}: found columns {columns[:500]}, expected `image` with bytes, and `label`")
    return picture, label


def _own_names(description, label):
    """number → name, as the file itself has them; None where it has none."""
    names = description.get(label, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return {number: name for number, name in enumerate(names)}


def _rows(table, picture, label):
    """(buffer or None, label) of each row."""
    struct = table.schema_arrow.field(picture).type.num_fields > 0
    columns = [f"{picture}.bytes" if struct else picture, label]
    for batch in table.iter_batches(BATCH_ROWS, columns=columns):
        data = batch.column(picture)
        data = data.flatten()[0] if struct else data
        yield from zip((value.as_buffer() for value in data), batch.column(label).to_pylist(), strict=True)


def _copy(data, file, path, row, held):
    """The entry of a picture, its bytes now in the file."""
    entry = Entry(f"{path.stem}-{row:06}", str(path), file.tell(), held=held)
    if data is None or not data.size:
        entry.fault = "no bytes in its row"
    elif data.size > MAX_FILE_BYTES:
        entry.fault = f"{data.size} bytes, more than {MAX_FILE_BYTES} are refused"
    else:
        entry.length = file.write(data)
    return entry


def _named(found, where, synsets, own):
    """Classes, and entries below them."""
    values = {value for value, _ in found}
    if None in values:
        raise ValueError(f"{where}: found rows without a label, expected one in each")
    if any(isinstance(value, str) for value in values):
        texts = dict(enumerate(sorted(values)))
        names = names_of(texts, where, texts)
        number_of = {text: number for number, text in texts.items()}
        found = [(number_of[value], entry) for value, entry in found]
    else:
        names = names_of(values, where, read_classes(synsets, True) if synsets else own)
    return list(names.values()), [replace(entry, name=f"{names[number]}/{entry.name}") for number, entry in found]
