"""The memory of a program: which tensors may share it, at which offsets they lie, and one block for all.

A tensor lives from the first op that names it to the last. An op that may overwrite one of its inputs does so where
that is read no more. Then the largest are placed first, each at the lowest offset that is free all its life.
"""

from dataclasses import dataclass

import numpy as np

from .program import Op, Program, Tensor

ALIGN = 64  # bytes: a cache line, and one AVX-512 vector


@dataclass(eq=False)
class Storage:
    """Memory of one tensor, or of several that overwrite each other."""

    tensors: list[Tensor]
    first: int  # indices of ops
    last: int
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes, whole cache lines."""
        return max(-(-tensor.nbytes // ALIGN) * ALIGN for tensor in self.tensors)

    @property
    def stop(self) -> int:
        return self.offset + self.size

    @property
    def scratch(self) -> bool:
        return self.tensors[0].scratch

    def meets(self, other: "Storage") -> bool:
        """Whether both are in use at some op."""
        return self.first <= other.last and other.first <= self.last


class Memory:
    """Where every tensor of a program lies. Tensors that have a place already (the images) are left out.

    Scratch is placed in a region of its own, after the rest: used again and again, it stays in the caches.
    """

    def __init__(self, program: Program):
        self.storages = storages(program)
        self.kept = _place([one for one in self.storages if not one.scratch])  # bytes
        scratch = [one for one in self.storages if one.scratch]
        self.scratch = _place(scratch)
        for one in scratch:
            one.offset += self.kept

    @property
    def nbytes(self) -> int:
        return self.kept + self.scratch

    def bind(self, block: np.ndarray):
        """Give every tensor its place in `block`, uint8, beginning at a cache line."""
        for storage in self.storages:
            for tensor in storage.tensors:
                tensor.lie_in(block[storage.offset : storage.offset + tensor.nbytes])


def storages(program: Program) -> list[Storage]:
    """The tensors of a program by the memory they share, in order of first use."""
    lives = _lives(program)
    found: dict[Tensor, Storage] = {}
    for index, op in enumerate(program.ops):
        for tensor in op.tensors():
            root = tensor.root
            if root in lives and root not in found:
                old = _overwritten(op, root, index, found)
                if old:
                    old.tensors.append(root)
                    old.last = max(old.last, lives[root][1])
                found[root] = old or Storage([root], *lives[root])
    return list(dict.fromkeys(found.values()))


def _lives(program) -> dict[Tensor, tuple[int, int]]:
    """First and last op of every tensor that needs a place."""
    lives = {}
    for index, op in enumerate(program.ops):
        for tensor in op.tensors():
            if tensor.root.place is None:
                lives[tensor.root] = (lives.get(tensor.root, (index,))[0], index)
    for tensor in program.results:
        lives[tensor.root] = (lives[tensor.root][0], len(program.ops))
    return lives


def _overwritten(op: Op, root: Tensor, index: int, found) -> Storage | None:
    """The memory that `root`, which op `index` writes, takes over."""
    for name, value in op.writes.items():
        if not isinstance(value, Tensor) or value.root is not root:
            continue
        if op.onto:
            return found[op.onto.root]
        for source in op.overwrites.get(name, ()):
            old = found.get(op.reads[source].root)
            same = old and old.tensors[0].dtype == root.dtype and old.size == Storage([root], 0, 0).size
            if same and old.last == index:
                return old
    return None


def _place(some: list[Storage]) -> int:
    """Give each an offset; returns the bytes they need together."""
    placed: list[Storage] = []
    for one in sorted(some, key=lambda one: (-one.size, one.first)):
        for other in placed:  # by offset
            if one.meets(other):
                if one.offset + one.size <= other.offset:
                    break
                one.offset = max(one.offset, other.stop)
        placed.append(one)
        placed.sort(key=lambda one: one.offset)
    return max((one.stop for one in placed), default=0)
