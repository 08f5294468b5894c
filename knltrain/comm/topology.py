"""Which ranks share a node, and which ones talk between nodes."""


class Group:
    """Some ranks of a communicator under numbers of their own, 0, 1, ...: what the algorithms see."""

    def __init__(self, comm, members):
        self.comm, self.members = comm, list(members)
        self.rank, self.size = self.members.index(comm.rank), len(self.members)

    def exchange(self, out, to: int, into, source: int):
        """As the communicator's, by this group's numbers."""
        self.comm.exchange(out, self.members[to], into, self.members[source])

    def sub(self, members) -> "Group":
        """Some of this group's ranks, by this group's numbers; this rank must be among them."""
        return Group(self.comm, [self.members[m] for m in members])


class Topology:
    """The ranks of `comm`, node by node. pretended: cut the ranks of one machine into so many nodes.

    node: communicator of this node's ranks. slices: a node's sum is handled by its first `slices` ranks, each owning a
    part and talking to the ranks of the same number on the other nodes (`across`; None on further ranks of an uneven
    node). even: every node has as many ranks.
    """

    def __init__(self, comm, pretended: int = 0):
        self.comm, self.node = comm, comm.node(pretended)
        first = comm.rank - self.node.rank  # ranks of a node are neighbours
        firsts = comm.gather(first)
        self.nodes = [[r for r in range(comm.size) if firsts[r] == f] for f in sorted(set(firsts))]
        sizes = [len(ranks) for ranks in self.nodes]
        self.slices, self.even = min(sizes), min(sizes) == max(sizes)
        local = self.node.rank
        self.across = Group(comm, [ranks[local] for ranks in self.nodes]) if local < self.slices else None

    @property
    def continues_tree(self) -> bool:
        """Whether summing inside nodes first, then between them, is the one summation tree over ranks."""
        return self.even and _is_power(self.slices) and _is_power(len(self.nodes))

    def __str__(self):
        sizes = sorted({len(ranks) for ranks in self.nodes})
        each = f"{sizes[0]}" if self.even else f"{sizes[0]} to {sizes[-1]}"
        return f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)} of {each} rank{'s' * (sizes[-1] > 1)}"


def _is_power(count: int) -> bool:
    return count & (count - 1) == 0
