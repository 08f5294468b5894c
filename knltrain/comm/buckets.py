"""Buckets: which slices of the gradient block travel together; arithmetic, fixed at start, equal on all ranks."""

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

LAST = 8  # see `cut`


@dataclass(frozen=True)
class Bucket:
    """A slice of the gradient block, complete when all the tensors in `waits_for` are."""

    start: int  # floats
    stop: int
    waits_for: frozenset
    number: int = 0

    @property
    def tensor(self) -> str:
        """Of which alone it is a part, or all; "" where there are several, or none."""
        return next(iter(self.waits_for)) if len(self.waits_for) == 1 else ""

    def __str__(self):
        names = sorted(self.waits_for)
        inside = f"{names[0]} … {names[-1]}" if len(names) > 1 else "".join(names) or "loss and statistics"
        return f"bucket {self.number} ({inside})"


def cut(
    tensors: list[tuple[str, int, int]], head: int, bucket_bytes: int, cut_before: Iterable[str] = (), grain: int = 1,
    apart: Collection[str] = (),
) -> list[Bucket]:  # fmt: skip
    """Buckets of at most `bucket_bytes`, last tensor first; small tensors are fused, huge ones split.

    The sum of the first layer's tensors hides behind nothing: they wait with few others, 1/LAST of a bucket at most.

    tensors: (name, start, stop) in floats, ascending and gapless from `head`; a tensor may have several pieces. The
    last bucket of the list is [0, head): the numbers that belong to the whole pass; it waits for no tensor and is sent
    at the end.
    cut_before: if not empty, buckets begin at these tensors, and `bucket_bytes` counts no more: ("fc6.w",) gives the
    two buckets of Jia et al. 2018 for an AlexNet, convolutions and fully connected layers.
    grain: a tensor is split only at multiples of so many floats from its start. apart: tensors that are a bucket each.
    Raises ValueError for bad numbers.
    """
    if cut_before:
        return _cut_before(tensors, head, cut_before, apart)
    if bucket_bytes < 4:
        raise ValueError(f"bucket_bytes is {bucket_bytes}, expected at least 4")
    limit = max(bucket_bytes // 4, grain)
    slices = []
    stop, names = None, set()
    for name, start, end in reversed(tensors):
        if stop is not None and (stop - start > limit or name in apart):
            slices.append((end, stop, names))
            stop, names = None, set()
        if name in apart:
            slices.append((start, end, {name}))
            continue
        if stop is None:
            stop = end
        while stop - start > limit:  # the tensor alone is too large
            edge = start + -(-(stop - limit - start) // grain) * grain
            slices.append((edge, stop, {name}))
            stop = edge
        names.add(name)
    if stop is not None:
        first = {name: end for name, _, end in tensors if end < stop and end - head <= limit // LAST}
        edge = max(first.values(), default=head)
        slices.append((edge, stop, {name for name, _, end in tensors if end > edge and name in names}))
        slices += [(head, edge, {*first})] * bool(first)
    return _numbered([*slices, (0, head, ())])


def _cut_before(tensors, head, names, apart):
    known = [name for name, _, _ in tensors]
    for name in names:
        if name not in known:
            all_known = ", ".join(dict.fromkeys(known))
            raise ValueError(f"comm.cut_before names {name!r}; expected tensors of this network: {all_known}")
    alone = [known.index(name) + end for name in apart for end in (0, 1)]
    edges = sorted({0, len(tensors), *map(known.index, names), *alone})
    slices = []
    for first, last in reversed(list(itertools.pairwise(edges))):
        slices.append((tensors[first][1], tensors[last - 1][2], set(known[first:last])))
    return _numbered([*slices, (0, head, ())])


def _numbered(slices) -> list[Bucket]:
    return [Bucket(start, stop, frozenset(names), number) for number, (start, stop, names) in enumerate(slices)]
