"""Who talks to whom: ranks and nodes, their slots, by which algorithm and in which format; settled before any memory.

`hierarchical`, where ranks share nodes: the ranks of a node sum in shared memory, each its slice; between nodes the
ranks of equal number exchange their slices. The others (`algorithms`, `piecewise`) are messages between all ranks.

`auto` is `hierarchical` where ranks share nodes, else, or where a power of two of ranks lies unevenly on nodes,
messages between all. Between ranks, or nodes, with equal shares in a power of two these are `halving`, for small slices
`doubling`; between others `direct`, for small slices `tree`. All of this keeps the tree of sums; what does not is there
to be compared with by `bench allreduce`.
"""

from dataclasses import replace

from .algorithms import Algorithm, Doubling, Halving
from .piecewise import Direct, Tree
from .shares import Shares
from .wire import Wire

BY_NAME = {"halving": Halving, "doubling": Doubling, "direct": Direct, "tree": Tree}
ALGORITHMS = ("auto", "hierarchical", *BY_NAME)
FOR_CODED = ("auto", "hierarchical", "direct")  # of the numbers that travel as float32 beside int8
FOR_SMALL = {"halving": "doubling", "direct": "tree"}


class Group:
    """Some ranks of a communicator under numbers of their own, 0, 1, ...: what the algorithms see."""

    def __init__(self, comm, members):
        self.comm, self.members = comm, list(members)
        self.rank, self.size = self.members.index(comm.rank), len(self.members)

    def exchange(self, out, to: int, into, source: int):
        """As the communicator's, by this group's numbers."""
        self.comm.exchange(out, self.members[to], into, self.members[source])

    def trade(self, sends, receives):
        """The same."""
        sends, receives = ([(x, self.members[rank]) for x, rank in messages] for messages in (sends, receives))
        self.comm.trade(sends, receives)


class Links:
    """The ranks of `comm`, node by node, and how they sum. Collective. Raises ValueError for an unknown choice.

    algorithm, wire: see ALGORITHMS and `wire.WIRES`; the wire is for gradients, what is `exact` travels as float32.
    pretended_nodes: cut the ranks of one machine into so many nodes. bandwidth: if not 0, a network of so many bytes/s
    is pretended, by sleeping. every_sum: the addends of all sums of gradients are rounded to the wire's format, those
    of slots in a rank and of ranks in a node too: then no bit depends on how many there are.

    shares: which slots each rank runs; without it one each. others: further algorithms, by name.

    nodes: the ranks of each; number: of this node. node: communicator of its ranks. between: the shares of nodes.
    slices: a node's sum is handled by its first `slices` ranks, each owning a part and talking to the ranks of the same
    number on the other nodes (`across`; None on further ranks of an uneven node). shared: whether nodes shall sum in
    shared memory.
    """

    def __init__(
        self, comm, algorithm: str = "auto", wire: str = "fp32", pretended_nodes: int = 0, bandwidth: float = 0.0,
        every_sum: bool = False, shares: Shares | None = None, others: dict[str, type[Algorithm]] | None = None,
    ):  # fmt: skip
        self._by_name = BY_NAME | (others or {})
        if algorithm not in (known := ("auto", "hierarchical", *self._by_name)):
            raise ValueError(f"unknown algorithm {algorithm!r}; expected one of {', '.join(known)}")
        self.comm, self.wire, self.bandwidth = comm, Wire(wire), bandwidth
        if self.wire.feeds_back and algorithm not in FOR_CODED:
            raise ValueError(f"comm.algorithm {algorithm} with wire {wire}; expected one of {', '.join(FOR_CODED)}")
        self.exact = Wire("fp32") if self.wire.short or self.wire.feeds_back else self.wire
        self.every_sum = every_sum and self.wire.short
        self.node = comm.node(pretended_nodes)
        firsts = comm.gather(comm.rank - self.node.rank)  # ranks of a node are neighbours
        self.nodes = [[r for r in range(comm.size) if firsts[r] == first] for first in sorted(set(firsts))]
        self.number = next(i for i, ranks in enumerate(self.nodes) if comm.rank in ranks)
        self._sizes = sorted({len(ranks) for ranks in self.nodes})
        self.slices, local = self._sizes[0], self.node.rank
        self.across = Group(comm, [ranks[local] for ranks in self.nodes]) if local < self.slices else None
        self.chosen = algorithm if algorithm in self._by_name else ""
        self.arrange(shares or Shares.equal(comm.size, comm.size))
        wanted = algorithm == "hierarchical" or (self.slices > 1 and (self.continues_tree or not self.shares.even))
        self.shared = comm.size > 1 and not self.chosen and wanted

    def arrange(self, shares: Shares):
        """From now on the ranks run these slots."""
        if self.wire.feeds_back and not shares.workers:
            shares = replace(shares, workers=shares.slots)
        self.shares, self.between = shares, shares.merged(self.nodes)

    @property
    def continues_tree(self) -> bool:
        """Whether ranks are in pairs, pairs of pairs, ... inside nodes first, then between them."""
        return self.shares.even and len(self._sizes) == 1 and self.between.even

    def methods(self, shared: bool) -> dict[Wire, tuple[Algorithm, Algorithm]]:
        """Algorithms for (small, large) slices, by wire: between all ranks, or behind the sums of nodes; {} alone.

        Raises ValueError for an algorithm that cannot work between ranks with such shares.
        """
        group, shares = self.between_whom(shared)
        return self.among(group, shares) if group and group.size > 1 else {}

    def among(self, group: Group, shares: Shares) -> dict[Wire, tuple[Algorithm, Algorithm]]:
        """The same for ranks of `group`, with these shares."""
        large = self.chosen or ("halving" if shares.even else "direct")
        pair = [self._by_name[name] for name in (FOR_SMALL.get(large, large), large)]
        wires = {self.exact} if self.wire.feeds_back else {self.wire, self.exact}
        return {wire: tuple(method(group, wire, shares) for method in pair) for wire in wires}

    def between_whom(self, shared: bool) -> tuple[Group | None, Shares]:
        """The ranks that exchange messages with this one, and their shares."""
        return (self.across, self.between) if shared else (Group(self.comm, range(self.comm.size)), self.shares)

    def __str__(self):
        least, most = self._sizes[0], self._sizes[-1]
        each = f"{least}" if least == most else f"{least} to {most}"
        return f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)} of {each} rank{'s' * (most > 1)}"
