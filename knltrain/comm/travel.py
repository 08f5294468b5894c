"""How gradients travel, settled at the start by all ranks alike: measured, chosen, cut into buckets, and told."""

from functools import partial
from itertools import pairwise

from knltrain.kernels import INT8_BLOCK, NORM_CHUNK, accumulate

from ..arena import Parameters
from .block import MessageBlock
from .buckets import cut
from .choice import Choice, FullyConnected, choose, seconds_per_flop, split_as_asked
from .coded import Residual
from .curve import LARGEST_TRIED, Curve, fit, measure
from .factors import Factors
from .gradients import Sums
from .split import Split
from .wire import Wire
from .worker import Worker

ALONE = 1 << 23  # bytes in a bucket where there is nobody to exchange with


class Travel:
    """Of the gradients of `parameters`, in `block`: its own, or one in the same memory. Collective.

    bucket_bytes: 0 chooses by measuring. cut_before: instead, buckets begin at these tensors. overlap: exchange in a
    thread of its own, while backward goes on. shard: leave each rank with its part of a sum, for `ShardedUpdate`.
    watch: is told of every exchange. fc: which layers may travel as factors, those that do are whole on every rank, or
    be split. ways: of the tensors that do not travel as `sums`.
    """

    def __init__(
        self, parameters: Parameters, block: MessageBlock, bucket_bytes: int = 0, cut_before=(), overlap=True,
        shard=False, watch=None, fc: FullyConnected | None = None,
    ):  # fmt: skip
        links, comm, fc = block.links, block.links.comm, fc or FullyConnected()
        self.block, self.watch = block, watch
        self.worker = Worker(overlap and comm.size > 1 and comm.threads_may_call, watch)
        asks = comm.size > 1 and bool(fc.candidates(links.shares.slots) or fc.groups(links.shares))
        self.curve = self._measure() if comm.size > 1 and (asks or not (bucket_bytes or cut_before)) else None
        if self.curve and not (bucket_bytes or cut_before):
            bucket_bytes = self.curve.bucket_bytes(4 * block.mine.size)
        self.bucket_bytes = bucket_bytes or ALONE
        # that of the links has buffers that the communication thread uses
        wire = Wire(links.wire.name) if links.every_sum else links.exact
        self.choice = self._choose(fc, asks, wire)
        others = [Factors(layer, block, wire) for layer in self.choice.layers]
        self.splits = [Split(layer, block, self.choice.group, wire, self.worker.do) for layer in self.choice.split]
        for split in reversed(self.splits):
            split.hand_over(self.choice.split)
        self.ways = {way.layer.name: way for way in (*others, *self.splits)}
        tensors = [
            (p.name, start, stop)
            for p in parameters.parameters
            for start, stop in pairwise(parameters.gradient_edges(p, p.name not in self.ways))
        ]
        shard = shard and comm.size > 1
        grain = NORM_CHUNK if shard else INT8_BLOCK if links.wire.feeds_back else 1
        self.buckets = cut(tensors, parameters.head, self.bucket_bytes, cut_before, grain, self.ways)
        if shard:
            block.cut_only_at(sorted({edge for _, start, stop in tensors for edge in range(start, stop, grain)}))
        self.residual = Residual(parameters, block, tensors) if links.wire.feeds_back else None
        self.sums = Sums(block, wire, shard)
        parameters.forget(*(row[parameters.head :] for row in (block.mine, *self.sums.kept)))

    def _measure(self) -> Curve:
        """Time against size of an exchange, the hand-over to the thread included."""

        def run(nbytes):
            self.worker.do("measure", partial(self.block.allreduce, 0, nbytes // 4))

        largest = min(LARGEST_TRIED, 4 * self.block.mine.size)
        return fit(measure(run, [largest >> shift for shift in (8, 6, 4, 2, 0)], self.block.links.comm.gather))

    def _choose(self, fc: FullyConnected, asks: bool, wire: Wire) -> Choice:
        """Which layers travel as factors, or are split. Collective."""
        comm = self.block.links.comm
        if fc.mode == "split":
            return split_as_asked(fc, self.block)
        if comm.size == 1 or not (asks or fc.mode == "factors"):
            return Choice()
        if fc.mode == "factors":
            return Choice(fc.layers, f"{', '.join(layer.name for layer in fc.layers)} travel as factors, as asked for")
        largest = max(fc.layers, key=lambda layer: layer.flops)
        per_flop = seconds_per_flop(largest, wire.add if wire.short else accumulate, comm.gather)
        return choose(fc, self.block, self.curve, self.bucket_bytes, bool(self.worker.thread), per_flop)

    def facts(self) -> dict:
        """How gradients travel, and why the buckets are as large as they are: `curve` is what an exchange takes."""
        links, curve, choice = self.block.links, self.curve, self.choice
        facts = {"how": str(self.block), "wire": links.wire.name, "over": str(links)}
        facts |= {"buckets": len(self.buckets) - 1, "bucket_bytes": self.bucket_bytes}
        facts |= {"overlapped": bool(self.worker.thread), "shares": links.shares.facts()}
        facts["factors"] = {"layers": [layer.name for layer in choice.layers], "why": choice.why}
        facts["split"] = {"layers": [layer.name for layer in choice.split], "group": choice.group}
        return facts | {"curve": {"alpha_s": curve.alpha, "bytes_per_s": curve.beta} if curve else None}

    def notes(self) -> list[str]:
        """What about the exchange is not as a user would expect it."""
        block, comm, lines = self.block, self.block.links.comm, []
        if not block.links.shares.even:
            lines.append(f"note: {block.links.shares}")
        if self.choice.why and not self.choice.usual:
            lines.append(f"note: {self.choice.why}")
        if comm.size > 1 and not comm.threads_may_call:
            lines.append("note: this MPI gives no MPI_THREAD_MULTIPLE: gradients are exchanged between the layers")
        return lines + [note for note in (block.note, self.watch and self.watch.note) if note]
