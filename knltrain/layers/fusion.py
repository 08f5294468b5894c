"""Passes over the lists of a program, before its memory is planned: what two ops can do in one, and what nobody needs.

A fusion looks only at the tensors that ops share. Where it does not fit (a layer between, a second reader) it is not
made, and the ops stay as they were declared.
"""

from knltrain.kernels import (
    add_forward,
    batchnorm_factors,
    batchnorm_normalize,
    batchnorm_statistics,
    batchnorm_sums,
    conv2d_backward_input,
    conv2d_forward,
    lrn_backward,
    maxpool_backward,
    maxpool_forward,
    relu_backward,
    relu_forward,
)

from .program import Op, Program, Tensor


def fuse(program: Program):
    """All passes, in their order: a convolution tells the moments of its sums, not those of a ReLU's output."""
    drop_unread(program)
    tell_moments(program)
    normalize_both(program)
    normalize_as_pooled(program)
    rectify_as_stored(program)
    add_onto(program)
    pass_on_as_stored(program)
    mask_as_stored(program)


def drop_unread(program: Program):
    """Remove ops that write only tensors nobody reads: the gradient of the images, and its packed weights."""
    read = {tensor.root for tensor in program.results}
    for ops in (program.backward, program.forward):
        for op in reversed(list(ops)):
            if all(isinstance(value, Tensor) and value.root not in read for value in op.writes.values()):
                ops.remove(op)
            else:
                read |= {tensor.root for tensor in op.tensors()}


def tell_moments(program: Program):
    """Convolution, then batch norm: the moments of x are taken while it lies in the cache, and x is read once less."""
    writers = _writers(program.forward)
    for statistics in _calls(program, batchnorm_statistics):
        moments = writers[statistics.others["moments"]]
        conv = writers.get(moments.reads["x"].root)
        if conv and conv.kernel is conv2d_forward and _of_the_same_channels(conv.writes["y"], moments.reads["x"]):
            plan = conv.others["plan"]
            fresh = Tensor(f"{conv.owner.name}.moments", plan.moments_shape, scratch=True)
            told = conv.others.setdefault("moments", fresh)
            statistics.others |= {"moments": told, "counts": plan.moments_counts}
            program.forward.remove(moments)


def normalize_both(program: Program):
    """Two batch norms, of which one adds the other's output: it normalizes both, and nothing is stored between."""
    writers = _writers(program.forward)
    for join in _calls(program, batchnorm_normalize):
        residual = join.reads.get("residual")
        norm = residual and _norm_for(program, writers, residual, join)
        if norm and not norm.others["relu"]:
            join.others["residual_table"] = norm.others["table"]
            join.reads["residual"] = norm.reads["x"].view(*residual.shape)
            program.forward.remove(norm)


def normalize_as_pooled(program: Program):
    """Batch norm, then max pooling, and nobody else reads what is between: pooling normalizes what it reads."""
    writers = _writers(program.forward)
    for pool in _calls(program, maxpool_forward):
        x = pool.reads["x"]
        if norm := _norm_for(program, writers, x, pool):
            pool.reads["x"] = norm.reads["x"].view(*x.shape)
            pool.others |= {key: norm.others[key] for key in ("table", "relu")}
            program.forward.remove(norm)


def rectify_as_stored(program: Program):
    """Convolution, then ReLU, and nobody else reads what is between: the convolution stores max(y, 0)."""
    writers = _writers(program.forward)
    for relu in _calls(program, relu_forward):
        x = relu.reads["x"]
        conv = writers.get(x.root)
        if conv and conv.kernel is conv2d_forward and _readers(program, x) == [relu]:
            conv.writes["y"] = relu.writes["y"].view(*conv.writes["y"].shape)
            conv.others["relu"] = True
            program.forward.remove(relu)


def add_onto(program: Program):
    """Where two gradients meet and a convolution's backward-input makes the later one, it adds its dx to the other."""
    writers, when = _writers(program.backward), program.backward.index
    for add in _calls(program, add_forward):
        other, main = sorted((add.reads["a"], add.reads["b"]), key=lambda t: when(writers[t.root]))
        conv, before = writers[main.root], _readers(program, other)
        alone = before.pop() is add and all(when(op) < when(conv) for op in before)
        if conv.kernel is conv2d_backward_input and not conv.onto and alone and _readers(program, main) == [add]:
            conv.writes["dx"], conv.onto = add.writes["y"].view(*main.shape), other
            conv.others["accumulate"] = True
            program.backward.remove(add)
            writers[add.writes["y"].root] = conv


def pass_on_as_stored(program: Program):
    """Batch norm with ReLU, whose output's gradient a convolution makes last: it stores what the ReLU passes on.

    And it sums that for batch norm's backward while it lies in the cache, which then goes over memory once, not twice.
    """
    writers = _writers(program.backward)
    for sums in _calls(program, batchnorm_sums):
        dy, dresidual = sums.reads["dy"], sums.writes.get("dresidual")
        conv = writers.get(dy.root)
        made = conv and conv.kernel is conv2d_backward_input and _of_the_same_channels(conv.writes["dx"], dy)
        alone = all(op and op.owner is sums.owner for op in _readers(program, dy))
        if not (made and alone and sums.others["relu"]):
            continue
        shape = conv.writes["dx"].shape
        told = Tensor(f"{conv.owner.name}.sums", conv.others["plan"].sums_shape, scratch=True)
        conv.others |= {"table": sums.others["table"], "sums": told}
        conv.reads["x"] = sums.reads["x"].view(*shape)
        if dresidual:
            conv.reads["y"], conv.writes["dx"] = sums.reads["y"].view(*shape), dresidual.root.view(*shape)
        program.backward.remove(sums)
        for op in program.backward:
            if op.owner is sums.owner:
                op.others |= {"sums": told} if op.kernel is batchnorm_factors else {"relu": False}


def mask_as_stored(program: Program):
    """ReLU, then max pooling or LRN: their backward gives nothing where the ReLU's output is not positive.

    LRN's reads that anyway; pooling notes it in forward, in place of where the maximum was.
    """
    writers, pools = _writers(program.backward), {op.owner: op for op in _calls(program, maxpool_forward)}
    for relu in _calls(program, relu_backward):
        dy = relu.reads["dy"]
        behind = writers.get(dy.root)
        if not behind or _readers(program, dy) != [relu]:
            continue
        reads = {lrn_backward: behind, maxpool_backward: pools.get(behind.owner)}.get(behind.kernel)
        if reads and reads.reads["x"].root is relu.reads["y"].root:
            reads.others["rectified"] = True
            behind.writes["dx"] = relu.writes["dx"].root.view(*behind.writes["dx"].shape)
            program.backward.remove(relu)


def _norm_for(program: Program, writers: dict[Tensor, Op], y: Tensor, reader: Op) -> Op | None:
    """The batch norm that makes y of its x alone, for this reader alone: who has the table and x can do without."""
    norm = writers.get(y.root)
    plain = norm and norm.kernel is batchnorm_normalize and "residual" not in norm.reads
    alone = plain and _readers(program, y) == [reader] and _of_the_same_channels(norm.reads["x"], y)
    return norm if alone else None


def _of_the_same_channels(a: Tensor, b: Tensor) -> bool:
    """Not where one is flat: a fully connected layer takes all numbers of an image for channels."""
    return a.shape[-1] == b.shape[-1]


def _calls(program: Program, kernel) -> list[Op]:
    return [op for op in program.ops if op.kernel is kernel]


def _writers(ops: list[Op]) -> dict[Tensor, Op]:
    """The op that writes each tensor."""
    return {value.root: op for op in ops for value in op.writes.values() if isinstance(value, Tensor)}


def _readers(program: Program, tensor: Tensor) -> list[Op | None]:
    """The ops that read a tensor; a result has one more reader, who comes after them all."""
    found = [op for op in program.ops if any(other.root is tensor.root for other in op.inputs())]
    return found + [None] * any(result.root is tensor.root for result in program.results)
