"""Passes over the lists of a program, before its memory is planned: what two ops can do in one, and what nobody needs.

A fusion looks only at the tensors that ops share. Where it does not fit (a layer between, a second reader) it is not
made, and the ops stay as they were declared.
"""

from knltrain.kernels import (
    COEFFICIENTS,
    add_forward,
    batchnorm_backward,
    batchnorm_forward,
    batchnorm_statistics,
    batchnorm_table,
    conv2d_backward_input,
    conv2d_forward,
    lrn_backward,
    maxpool_backward,
    maxpool_forward,
    relu_backward,
    relu_forward,
)

from .program import MEMORY, Op, Program, Tensor


def fuse(program: Program):
    """All passes, in their order: a convolution tells the moments of its sums, not those of a ReLU's output."""
    drop_unread(program)
    tell_moments(program)
    normalize_both(program)
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
    for norm in _calls(program, batchnorm_forward):
        conv = writers.get(norm.reads["x"].root)
        if conv and conv.kernel is conv2d_forward and _of_the_same_channels(conv.writes["y"], norm.reads["x"]):
            plan = conv.others["plan"]
            moments = Tensor(f"{conv.owner.name}.moments", plan.moments_shape, scratch=True)
            conv.others["moments"] = norm.others["moments"] = moments
            norm.others["counts"] = plan.moments_counts
            norm.passes = norm.passes[1:]


def normalize_both(program: Program):
    """Two batch norms, of which one adds the other's output: it normalizes both, and nothing is stored between."""
    writers = _writers(program.forward)
    for join in _calls(program, batchnorm_forward):
        residual = join.reads.get("residual")
        norm = residual and writers.get(residual.root)
        alone = norm and norm.kernel is batchnorm_forward and _readers(program, residual) == [join]
        if not (alone and "moments" in norm.others and "residual" not in norm.reads and not norm.others["relu"]):
            continue
        join.others["residual_table"] = _tabulate(program.forward, norm, join)
        join.reads["residual"] = norm.reads["x"].view(*residual.shape)
        norm.kernel, norm.passes, norm.uses, given = batchnorm_statistics, (), (), norm.others
        norm.reads, norm.writes = {"moments": given["moments"]}, {key: given[key] for key in ("mean", "var")}
        norm.others = {"counts": given["counts"]}


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
    writers = _writers(program.backward)
    for add in _calls(program, add_forward):
        other, main = sorted((add.reads["a"], add.reads["b"]), key=lambda t: program.backward.index(writers[t.root]))
        conv = writers[main.root]
        alone = _readers(program, main) == _readers(program, other) == [add]
        if conv.kernel is conv2d_backward_input and alone:
            conv.writes["dx"], conv.onto = add.writes["y"].view(*main.shape), other
            conv.others["accumulate"] = True
            program.backward.remove(add)


def pass_on_as_stored(program: Program):
    """Batch norm with ReLU, whose output's gradient a convolution makes last: it stores what the ReLU passes on.

    And it sums that for batch norm's backward while it lies in the cache, which then goes over memory once, not twice.
    """
    writers = _writers(program.backward)
    for norm in _calls(program, batchnorm_backward):
        dy, dresidual = norm.reads["dy"], norm.writes.get("dresidual")
        conv = writers.get(dy.root)
        made = conv and conv.kernel is conv2d_backward_input and _readers(program, dy) == [norm]
        if not (made and norm.others["relu"] and _of_the_same_channels(conv.writes["dx"], dy)):
            continue
        shape, name = conv.writes["dx"].shape, conv.owner.name
        sums = Tensor(f"{name}.sums", conv.others["plan"].sums_shape, scratch=True)
        conv.others |= {"table": _tabulate(program.backward, norm, conv), "sums": sums}
        conv.reads["x"] = norm.reads["x"].view(*shape)
        if dresidual:
            conv.reads["y"] = norm.reads.pop("y").view(*shape)
            conv.writes["dx"] = norm.writes.pop("dresidual").root.view(*shape)
            norm.reads["dy"] = dresidual
        norm.others |= {"y": None, "relu": False, "sums": sums}
        norm.passes, norm.overwrites = (), {"dx": ("x",)} if dresidual else {"dx": ("dy",)}


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


def _tabulate(ops: list[Op], norm: Op, user: Op) -> Tensor:
    """The table of what a batch norm does to its input, made just before the op that uses it."""
    table = Tensor(f"{user.owner.name}.table", (COEFFICIENTS, norm.reads["x"].shape[-1]), scratch=True)
    vectors = {key: norm.others[key] for key in ("gamma", "beta", "mean", "var", "eps")}
    tabulate = Op(norm.owner, MEMORY, batchnorm_table, {}, {"table": table}, vectors, uses=norm.uses)
    ops.insert(ops.index(user), tabulate)
    return table


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
