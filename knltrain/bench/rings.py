"""What `bench allreduce` compares with: sums that keep no tree, which training can therefore not choose.

P ranks, n bytes, messages of latency a and bandwidth b; the interface is that of `comm.algorithms`.

| name  | time                       | source                            |
| ----- | -------------------------- | --------------------------------- |
| mpi   | the library's              | MPI_Allreduce                     |
| ring  | 2(P-1) a + 2 (P-1)/P n/b   | Patarasuk and Yuan 2009           |
| torus | 2(R+C-2) a + 2 (P-1)/P n/b | Mikami et al. 2018, P = R rows of C |
"""

import math

from ..comm import Algorithm, Group, part_of


class Mpi(Algorithm):
    """The library's own Allreduce over all ranks; the yardstick."""

    def __init__(self, group, wire, shares):
        super().__init__(group, wire, shares)
        if wire.short or group.size != group.comm.size:
            raise ValueError(f"algorithm mpi with wire {wire.name}; expected fp32, over all ranks")

    def allreduce(self, x, rows=()):
        self.group.comm.sum(x)


class Ring(Algorithm):
    """Parts go round: each rank adds its own to what comes from the left and hands it on to the right."""

    def reduce_scatter(self, x, bounds, rows=()):
        rank, size = self.group.rank, self.group.size
        for step in range(size - 1):
            out, into = (rank - step - 1) % size, (rank - step - 2) % size
            add, here = part_of(x, bounds, out), part_of(x, bounds, into)
            self.wire.add_from(self.group, add, (rank + 1) % size, here, rank - 1)

    def allgather(self, x, bounds):
        rank, size = self.group.rank, self.group.size
        self.wire.round(part_of(x, bounds, rank))
        for step in range(size - 1):
            out, into = (rank - step) % size, (rank - step - 1) % size
            have, want = part_of(x, bounds, out), part_of(x, bounds, into)
            self.wire.copy_from(self.group, have, (rank + 1) % size, want, rank - 1)


class Torus(Algorithm):
    """Ranks as R rows of C: rings along rows, then along columns on 1/C of the vector, and back."""

    def __init__(self, group, wire, shares):
        super().__init__(group, wire, shares)
        self.rows = next(r for r in range(math.isqrt(group.size), 0, -1) if group.size % r == 0)
        self.columns = group.size // self.rows
        self.row, self.column = divmod(group.rank, self.columns)
        self.along_row = Ring(_some(group, range(self.row * self.columns, (self.row + 1) * self.columns)), wire, shares)
        self.along_column = Ring(_some(group, range(self.column, group.size, self.columns)), wire, shares)

    def part(self):
        return self.column * self.rows + self.row

    def _bounds(self, bounds):
        """Bounds along a row, of R parts each, and inside this column's piece."""
        first = self.column * self.rows
        return bounds[:: self.rows], bounds[first : first + self.rows + 1]

    def reduce_scatter(self, x, bounds, rows=()):
        rows, columns = self._bounds(bounds)
        self.along_row.reduce_scatter(x, rows)
        self.along_column.reduce_scatter(x, columns)

    def allgather(self, x, bounds):
        rows, columns = self._bounds(bounds)
        self.along_column.allgather(x, columns)
        self.along_row.allgather(x, rows)


def _some(group, members) -> Group:
    """Some of a group's ranks, by its numbers; this rank must be among them."""
    return Group(group.comm, [group.members[m] for m in members])


YARDSTICKS = {"mpi": Mpi, "ring": Ring, "torus": Torus}
