"""Files that are whole or absent: written under a temporary name, synced, renamed. The one place that does this."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp"


def write_whole(path: Path, content: str | bytes | Callable[[Path], None], durable: bool = True) -> None:
    """Put `content` in the place of `path`; on any error, and on a kill, what was there before stays.

    content: text, bytes, or a function that makes the file it is given. durable: not before it is on the disk, its name
    too; otherwise a power cut may lose it. Raises OSError, and what the function raises.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        put(temporary, path, durable)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):  # a name that the caller does not know
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def put(temporary: Path, path: Path, durable: bool = True) -> None:
    """Give a file that is whole its name. Where there was one of that name, it is replaced. Raises OSError."""
    if durable:
        _sync(temporary)
    os.replace(temporary, path)
    if durable:
        _sync(path.parent)  # the new name itself must reach the disk


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
