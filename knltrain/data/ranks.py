"""What one rank finds out and all of them need: the file system is asked once, not by 512 ranks.

A communicator is whatever has `rank`, `size` and `broadcast(array)`; None stands for one rank alone.
"""

import json

import numpy as np


def from_first(comm, make) -> dict:
    """The dict that `make()` gives on rank 0, on every rank. Its values are JSON-able or arrays.

    Raises: on every rank the ValueError or OSError that `make` raised on rank 0, of the same type.
    """
    if comm is None or comm.size == 1:
        return make()
    error, values = None, {}
    if comm.rank == 0:
        try:
            values = make()
        except (ValueError, OSError) as caught:
            error = caught
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in values.items() if key not in arrays}
    head = {"plain": plain, "arrays": {key: [array.dtype.str, array.shape] for key, array in arrays.items()}}
    head["error"] = None if error is None else f"{error.filename}: {error.strerror}" if _named(error) else str(error)
    head = json.loads(_bytes_from_first(comm, json.dumps(head).encode()))
    if head["error"] is not None:
        raise error or ValueError(head["error"])
    for key, (dtype, shape) in head["arrays"].items():
        array = arrays[key] = np.ascontiguousarray(arrays[key]) if comm.rank == 0 else np.empty(shape, dtype)
        if array.size:
            comm.broadcast(array.reshape(-1).view(np.uint8))
    return head["plain"] | arrays


def _named(error):
    return isinstance(error, OSError) and error.filename and error.strerror


def _bytes_from_first(comm, text):
    length = np.array([len(text)], np.int64)
    comm.broadcast(length)
    buffer = np.empty(int(length[0]), np.uint8)
    if comm.rank == 0:
        buffer[:] = np.frombuffer(text, np.uint8)
    comm.broadcast(buffer)
    return buffer.tobytes()
