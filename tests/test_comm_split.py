"""Fully connected layers that are split over groups of ranks: the bits of one rank with the same shards."""

from contextlib import closing
from itertools import pairwise
from mmap import PAGESIZE

import numpy as np
import pytest
from mpirun import ROOT, run_mpi
from ranks import ALONE, learned, on_ranks
from rehearsal_ranks import RECIPE, train
from test_comm_factors import same

from knltrain.assembly import make_trainer
from knltrain.comm import Reducer, Serial, Shares
from knltrain.comm.split import group_sizes
from knltrain.comm.tree import joins
from knltrain.data.synthetic import Synthetic
from knltrain.kernels import (
    FP32,
    NORM_CHUNK,
    aligned_zeros,
    conv2d_backward_input,
    conv2d_forward,
    conv2d_pack,
    conv2d_pack_transposed,
    conv2d_plan,
    digest,
    number_named,
)
from knltrain.layers import Linear, ReLU, Sequential
from knltrain.models import Among, Model
from knltrain.models.state import load, state
from knltrain.recipe.config import RecipeError, parse_recipe

SLOTS = 24


@pytest.fixture(scope="module")
def alone():
    """What one rank learns in some precision, once."""
    found = {}

    def of(*settings):
        if settings not in found:
            found[settings] = train(Serial(), SLOTS, settings)
        return found[settings]

    return of


@pytest.mark.parametrize(
    ("ranks", "group", "settings"),
    [
        (2, 2, ["comm.overlap=false"]),
        (3, 0, []),  # no group: sums
        (4, 4, ["comm.algorithm=direct"]),
        (4, 2, ["comm.bucket_bytes=4000", "comm.shard_update=true"]),
        (4, 4, ["comm.pretended_nodes=2", "comm.shard_update=true"]),
        (6, 2, ["comm.algorithm=tree"]),
        (6, 2, ["comm.pretended_nodes=2"]),
        (8, 2, ["comm.pretended_nodes=4", "comm.overlap=false"]),
        (8, 4, ["comm.cut_before=['fc1.w']"]),
        (12, 4, ["comm.pretended_nodes=3", "comm.shard_update=true"]),
    ],
)
def test_split__any_groups_train_the_same(alone, monkeypatch, ranks, group, settings):
    expected, made, settings = alone(), set(), ["comm.fc=split", f"comm.fc_group={group}", *settings]
    monkeypatch.setattr(Reducer, "close", lambda self, close=Reducer.close: (made.add(_told(self)), close(self)))
    for found in on_ranks(ranks, lambda comm: train(comm, SLOTS, settings)):
        same(found, expected)
    assert made == {(("fc0.w", "fc1.w"), group) if group else ((), 1)}


def _told(reducer):
    facts = reducer.travel.facts()["split"]
    return tuple(facts["layers"]), facts["group"]


@pytest.mark.parametrize("fc", ["sum", "factors"])
def test_shards__that_nobody_splits_train_the_same(alone, fc):
    for found in on_ranks(3, lambda comm: train(comm, SLOTS, [f"comm.fc={fc}", "comm.shard_update=true"])):
        same(found, alone())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_split__of_16_bits_train_the_same(alone, precision):
    settings = [f"compute.precision={precision}", "comm.fc=split", "comm.fc_group=2"]
    for found in on_ranks(4, lambda comm: train(comm, SLOTS, settings)):
        same(found, alone(settings[0]))


@pytest.fixture
def trainer():
    """Makes a trainer of a rank, for layers of several chunks of norms; closed at the end."""
    made = []

    def of(comm, *settings):
        sizes = ["data.crop=16", "batch.global_batch=48", "batch.slot_batch=2", "comm.fc_shards=8"]
        layers = Sequential("net", Linear("fc0", 999), ReLU("relu"), Linear("fc1", 5)), (16, 16, 3)
        recipe = parse_recipe(RECIPE, [*sizes, *settings])
        made.append(make_trainer(recipe, Synthetic(240, 16, 5), comm, ALONE, layers=layers))
        return made[-1]

    yield of
    for one in made:
        one.close()


def test_split__goes_on_with_other_groups(trainer):
    """Speeds that give a group unequal shares, then a whole state that another number of ranks begins with."""

    def first(comm):
        one = trainer(comm, "comm.fc=split", "comm.fc_group=4", "optim.average=0.9")
        one.seek(0)
        groups, losses = [], []
        for speeds in ([1, 1, 1, 1], [1, 1, 0.5, 0.5], [1, 0.5, 1, 0.5]):
            one.share(speeds)
            groups.append(_told(one.parts.reducer)[1])
            losses.append(one.step().loss)
        one.parts.update.complete()
        return groups, losses, {name: array.copy() for name, array in state(one.model.parameters).items()}

    def rest(comm, arrays=None, done=3):
        one = trainer(comm, "comm.fc=split", "optim.average=0.9", "comm.shard_update=true")
        if arrays:
            load(one.model.parameters, arrays, "the first")
            one.restore(done, {"previous_lr": one.parts.leg.rate(done - 1)})
        one.seek(done)
        losses = [one.step().loss for _ in range(5 - done)]
        one.parts.update.complete()
        return losses, state(one.model.parameters)

    losses, expected = rest(Serial(), done=0)
    found = on_ranks(4, first)
    for groups, begun, _ in found:
        assert groups == [4, 2, 1]
        assert begun == losses[:3]
    for then, now in on_ranks(2, lambda comm: rest(comm, found[0][2])):
        assert then == losses[3:]
        same(now, expected)


def test_split__keeps_its_own_rows_alone(trainer):
    """But for an evaluation, which needs all weights, and a checkpoint, for which the first rank has all there is."""

    def others(comm):
        one = trainer(comm, "comm.fc=split", "comm.fc_group=4", "optim.average=0.9")
        one.seek(0)
        p, found = one.model.parameters.named["fc0.w"], []

        def look():
            for array in (p.w, p.v, p.dw, p.states["average"]):
                flat, own = array.reshape(-1), p.own
                found.append(np.count_nonzero(flat[: own.start]) + np.count_nonzero(flat[own.stop :]))

        steps = (lambda: one.parts.update.gather_weights(), lambda: one.parts.update.complete(everywhere=False))
        for then in (one.step, *steps, one.step):
            then()
            look()
        return np.reshape(found, (4, 4)).tolist()

    most, edges = 999 * 768 * 3 // 4, 4 * PAGESIZE // 4  # pages in which kept numbers are, too, stay
    for rank, (step, evaluation, checkpoint, after) in enumerate(on_ranks(4, others)):
        for w, v, dw, average in (step, after):
            assert v <= edges and dw == 0 and w <= edges and average <= edges
        assert evaluation == [most, 0, 0, evaluation[3]] and evaluation[3] > most // 2  # the ranks' averages
        assert checkpoint[0] == most and (checkpoint[1] > most // 2 if rank == 0 else checkpoint[1] == 0)


def test_split__is_left_and_taken_up_again_where_workers_train_apart():
    """Phases of all together, apart, together."""
    phases = "".join(f"[[phase]]\nfrom_epoch = {at}\noptim.local_steps = {n}\n" for at, n in ((0.25, 2), (0.75, 1)))
    settings = ["batch.global_batch=16", "batch.slot_batch=2", "comm.fc_shards=4", "comm.fc=split", "comm.workers=2"]

    def trained(comm):
        layers = Sequential("net", Linear("fc0", 130), ReLU("relu"), Linear("fc1", 5)), (8, 8, 3)
        recipe = parse_recipe(RECIPE + phases, settings)
        with closing(make_trainer(recipe, Synthetic(64, 8, 5), comm, ALONE, layers=layers)) as one:
            return learned(one, 4)

    expected = trained(Serial())
    for found in on_ranks(2, trained):
        same(found, expected)


def test_split__sends_the_bytes_of_the_formula(trainer):
    """Of a rank of 12 images: 12 (G - 1) (2 C / G + 2 K) numbers, and 2 (P / G - 1) / (P / G) C K / G of sums."""

    def sent(comm):
        one = trainer(comm, "comm.fc=split", "comm.fc_group=2", "comm.algorithm=halving")
        one.seek(0)
        one.step()
        before = comm.sent_bytes
        one.step()
        return comm.sent_bytes - before

    formula = sum(12 * (c + 2 * k) + c * k / 2 for c, k in [(768, 999), (999, 5)])
    formula -= 12 * 768 / 2  # nobody wants the gradient of the images
    rest = 2 * (1008 + 16 + 16)  # the biases and the loss, whole cache lines, by doubling
    assert sum(on_ranks(4, sent)) == 4 * 4 * (formula + rest)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("depth", "width", "shards"), [(256, 33, 8), (298, 64, 4), (130, 5, 4)])
def test_sharded__is_the_layer(precision, depth, width, shards):
    """y is summed over shards in pairs, from products of float32; dx is that of the whole layer, to the bit."""
    layers, number = Sequential("net", Linear("a", depth), Linear("b", width)), number_named(precision)
    whole, some = (Model(layers, (1, 1, 64), 3, precision=precision, among=Among(fc_shards=n)) for n in (1, shards))
    rng, layer = np.random.default_rng(depth), some.sharded["b.w"]
    x, dy = (number.narrow(rng.standard_normal((3, 1, 1, n)).astype(np.float32)) for n in (depth, width))
    found = {}
    for model in (whole, some):
        forward, backward = (
            next(op for op in ops if op.kind == kind and op.owner.name == "b")
            for ops, kind in ((model.training.forward, "forward"), (model.training.backward, "backward_input"))
        )
        forward.arguments["x"][...], backward.arguments["dy"][...] = x, dy
        for op in (forward, backward):
            op.kernel(**op.arguments)
        found[model] = forward.arguments["y"].copy(), backward.arguments["dx"].copy()
    assert [rows.start for rows in layer.rows] == [len(layer.rows[0]) * i for i in range(shards)] or depth == 298
    w = some.parameters.named["b.w"].w.reshape(depth, width)
    terms = [number.widen(x).reshape(3, depth)[:, rows] @ w[rows] for rows in map(_slice, layer.rows)]
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
    off = 0.02 if precision == "bf16" else 1e-5  # y is rounded, and w too where pairs are multiplied
    np.testing.assert_allclose(found[some][0].reshape(3, width), terms[0], rtol=off, atol=off)
    assert np.array_equal(found[some][1], found[whole][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("depth", "width"), [(96, 64), (298, 33), (2304, 40)])
def test_sharded__images_of_all_members_at_once_are_those_of_each(precision, depth, width):
    """An element of y and of dx is one sum, in an order that does not depend on how many images there are."""
    number, rng, found = number_named(precision), np.random.default_rng(depth), []
    x, dy = (number.narrow(rng.standard_normal((150, 1, 1, n)).astype(np.float32)) for n in (depth, width))
    w = rng.standard_normal((1, 1, depth, width)).astype(np.float32)
    for images in (3, 150):
        plan = conv2d_plan((images, 1, 1, depth), w.shape, number=number, y_number=FP32)
        packed, packed_t = (np.zeros(size, m.panels.dtype) for size, m in (
            (plan.packed_size, plan.forward), (plan.packed_t_size, plan.backward_input)
        ))  # fmt: skip
        if not plan.unpacked:
            conv2d_pack(plan, w, packed)
            conv2d_pack_transposed(plan, w, packed_t)
        y, dx = np.empty((150, 1, 1, width), np.float32), np.empty_like(x)
        workspace = aligned_zeros(plan.workspace_size)
        for at in range(0, 150, images):
            own = slice(at, at + images)
            conv2d_forward(plan, x[own], w if plan.unpacked else packed, None, y[own], workspace)
            conv2d_backward_input(plan, dy[own], w if plan.unpacked else packed_t, dx[own])
        found.append((y, dx))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))


def _slice(rows):
    return slice(rows.start, rows.stop)


def test_lars__norms_of_a_tensor_in_pieces_are_those_of_its_chunks(trainer):
    one = trainer(Serial())
    p = one.model.parameters.named["fc0.w"]
    p.dw[...] = np.random.default_rng(0).standard_normal(p.shape)
    g = p.dw.reshape(-1).astype(np.float64)
    edges = [0, *p.cuts, p.size]
    chunks = [range(at, min(at + NORM_CHUNK, b)) for a, b in pairwise(edges) for at in range(a, b, NORM_CHUNK)]
    expected = [(g[c.start : c.stop] ** 2).sum() for c in chunks]
    assert len(edges) == 9
    assert len(expected) == 16
    np.testing.assert_allclose(one.parts.optimizer.measure(p)[:, 1], expected, rtol=1e-12)
    start, stop = p.cuts[1], p.cuts[3]
    np.testing.assert_allclose(one.parts.optimizer.measure(p, slice(start, stop))[:, 1], expected[4:8], rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["comm.fc=split"], 'comm.fc_shards is 1; expected shards that ranks can split, as 8, with comm.fc = "split"'),
        (["comm.fc_shards=6"], "comm.fc_shards is 6; expected one of 1, 2, 4, 8, 16, 32, 64"),
        (["comm.fc_group=-1"], "comm.fc_group is -1; expected"),
    ],
)
def test_split__refuses_in_a_line(settings, words):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE, settings)
    assert words in str(caught.value)


def test_split__does_the_same_under_mpi(alone):
    run = run_mpi(4, str(ROOT / "tests" / "split_ranks.py"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [f"{digest(alone()[name]):016x}" for name in sorted(alone())]


@pytest.mark.parametrize(
    ("slots", "ranks", "sizes"),
    [
        (512, 512, [2, 4, 8]),
        (1000, 1000, [2, 4, 8]),
        (2048, 2048, [2, 4, 8]),
        (48, 12, [2, 4]),
        (512, 448, [2, 4, 8]),
        (96, 3, []),
    ],
)
def test_groups__of_many_ranks_sum_along_the_tree(slots, ranks, sizes):
    shares = Shares.equal(slots, ranks)
    assert group_sizes(shares, 8, 8) == sizes
    for size in sizes:
        between = shares.merged([range(first, first + size) for first in range(0, ranks, size)])
        parts = [part for own in between.parts for part in own]
        additions, sums = joins(parts, slots)
        assert len(additions) == len(parts) - 1 and sums == [0]
        assert max(map(len, between.parts)) <= 5
